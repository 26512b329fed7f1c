#!/bin/sh
# Reloads what reads this configuration.
exec true
