"""A peer for the interop tests: pynng (nng), or libnanomsg through ctypes.

    peer.py LIBRARY KIND bind|connect URL [--file PATH]... [--interval MS] [--subscribe TEXT]
    peer.py LIBRARY device req|pub|push|pair FRONT BACK

LIBRARY is pynng or nanomsg; KIND is push, pull, pub, sub, req, rep or pair. It does what nanocat does: pull, sub
and pair without a file receive; push, pub and pair with files send them in turn, once each, or round and round
at the interval; req sends each file and waits for its reply; rep answers every request with the file.

It writes "ready" once the address is taken, and "got HEX" for every message that it received. It ends when its
standard input does, so it never outlives the test that started it.
"""

import argparse
import ctypes
import os
import sys
import threading
import time

PATIENCE_MS = 60_000


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Nng:
    """A socket of pynng."""

    def __init__(self, kind, subscribe):
        import pynng

        self.socket = getattr(pynng, kind.capitalize() + "0")()
        self.socket.recv_timeout = PATIENCE_MS
        self.socket.send_timeout = PATIENCE_MS
        self.socket.reconnect_time_min = 50
        if kind == "sub":
            self.socket.subscribe(subscribe)

    def bind(self, url):
        self.socket.listen(url)

    def connect(self, url):
        self.socket.dial(url, block=False)

    def send(self, body):
        self.socket.send(body)

    def recv(self):
        # Not `recv`: pynng 0.9 fails in it on an empty message.
        return self.socket.recv_msg().bytes

    @staticmethod
    def device(front, back, front_url, back_url):
        import pynng

        lib, ffi = pynng.lib, pynng.ffi

        def raw(kind, url):
            socket = ffi.new("nng_socket *")
            pynng.check_err(getattr(lib, f"nng_{kind}0_open_raw")(socket))
            pynng.check_err(lib.nng_listen(socket[0], url.encode(), ffi.NULL, 0))
            return socket[0]

        ends = raw(front, front_url), raw(back, back_url)
        say("ready")
        lib.nng_device(*ends)


class Nanomsg:
    """A socket of libnanomsg. The numbers are those of its headers."""

    PROTOCOLS = {"pair": 16, "pub": 32, "sub": 33, "req": 48, "rep": 49, "push": 80, "pull": 81}
    AF_SP, AF_SP_RAW = 1, 2
    NN_SOL_SOCKET, NN_SNDTIMEO, NN_RCVTIMEO, NN_RECONNECT_IVL = 0, 4, 5, 6
    NN_SUB_SUBSCRIBE = 1
    NN_MSG = ctypes.c_size_t(-1)

    lib = None

    @classmethod
    def load(cls):
        cls.lib = ctypes.CDLL("libnanomsg.so.5")
        cls.lib.nn_strerror.restype = ctypes.c_char_p
        cls.lib.nn_send.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        cls.lib.nn_recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        cls.lib.nn_freemsg.argtypes = [ctypes.c_void_p]

    @classmethod
    def check(cls, result):
        if result < 0:
            raise OSError(cls.lib.nn_strerror(cls.lib.nn_errno()).decode())
        return result

    def __init__(self, kind, subscribe):
        self.load()
        self.number = self.check(self.lib.nn_socket(self.AF_SP, self.PROTOCOLS[kind]))
        self.set(self.NN_SOL_SOCKET, self.NN_SNDTIMEO, PATIENCE_MS)
        self.set(self.NN_SOL_SOCKET, self.NN_RCVTIMEO, PATIENCE_MS)
        self.set(self.NN_SOL_SOCKET, self.NN_RECONNECT_IVL, 50)
        if kind == "sub":
            topic = self.PROTOCOLS["sub"], self.NN_SUB_SUBSCRIBE, subscribe, len(subscribe)
            self.check(self.lib.nn_setsockopt(self.number, *topic))

    def set(self, level, option, value):
        value = ctypes.c_int(value)
        self.check(self.lib.nn_setsockopt(self.number, level, option, ctypes.byref(value), 4))

    def bind(self, url):
        self.check(self.lib.nn_bind(self.number, url.encode()))

    def connect(self, url):
        self.check(self.lib.nn_connect(self.number, url.encode()))

    def send(self, body):
        self.check(self.lib.nn_send(self.number, body, len(body), 0))

    def recv(self):
        chunk = ctypes.c_void_p()
        size = self.check(self.lib.nn_recv(self.number, ctypes.byref(chunk), self.NN_MSG, 0))
        body = ctypes.string_at(chunk, size)
        self.lib.nn_freemsg(chunk)
        return body

    @classmethod
    def device(cls, front, back, front_url, back_url):
        cls.load()

        def raw(kind, url):
            number = cls.check(cls.lib.nn_socket(cls.AF_SP_RAW, cls.PROTOCOLS[kind]))
            if kind == "sub":
                topic = cls.PROTOCOLS["sub"], cls.NN_SUB_SUBSCRIBE, b"", 0
                cls.check(cls.lib.nn_setsockopt(number, *topic))
            cls.check(cls.lib.nn_bind(number, url.encode()))
            return number

        ends = raw(front, front_url), raw(back, back_url)
        say("ready")
        cls.lib.nn_device(*ends)


LIBRARIES = {"pynng": Nng, "nanomsg": Nanomsg}
# The socket that faces those who connect to FRONT, and the one behind it.
DEVICES = {"req": ("rep", "req"), "pub": ("sub", "pub"), "push": ("pull", "push"), "pair": ("pair", "pair")}


def receive(socket):
    while True:
        say("got " + socket.recv().hex())


def work(socket, kind, bodies, interval):
    if kind == "rep":
        while True:
            say("got " + socket.recv().hex())
            if bodies:
                socket.send(bodies[0])
    if kind == "pair" and bodies:
        threading.Thread(target=receive, args=(socket,), daemon=True).start()
    while bodies:
        for body in bodies:
            socket.send(body)
            if kind == "req":
                say("got " + socket.recv().hex())
            if interval:
                time.sleep(interval / 1000)
        if not interval:
            break
    if kind in ("pull", "sub") or (kind == "pair" and not bodies):
        receive(socket)


def main(args):
    if args[1] == "device":
        library, _, pattern, front_url, back_url = args
        LIBRARIES[library].device(*DEVICES[pattern], front_url, back_url)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("kind")
    parser.add_argument("role", choices=["bind", "connect"])
    parser.add_argument("url")
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--interval", type=int)
    parser.add_argument("--subscribe", default="")
    told = parser.parse_args(args)
    socket = LIBRARIES[told.library](told.kind, told.subscribe.encode())
    getattr(socket, told.role)(told.url)
    say("ready")
    bodies = []
    for path in told.file:
        with open(path, "rb") as file:
            bodies.append(file.read())
    work(socket, told.kind, bodies, told.interval)


def guarded(args):
    try:
        main(args)
    except BaseException as error:
        sys.stderr.write(f"peer.py {' '.join(args)}: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)


# Its work may sit in a call that nothing interrupts, so the end comes from this thread.
threading.Thread(target=guarded, args=(sys.argv[1:],), daemon=True).start()
sys.stdin.buffer.read()
os._exit(0)
