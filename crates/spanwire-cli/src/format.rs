//! How a message looks on the standard output.
//!
//! The same as nanocat prints (its `--raw`, `--ascii`, `--quoted`, `--hex`), so a script can change over.
//!
//! Owns: the bytes of a printed message. Never: writes them.

use crate::args::Format;

/// What is written for `body`.
pub(crate) fn format(body: &[u8], format: Format) -> Vec<u8> {
    match format {
        Format::Raw => body.to_vec(),
        Format::Ascii => {
            let dotted = body.iter().map(|b| if printable(*b) { *b } else { b'.' });
            dotted.chain([b'\n']).collect()
        }
        Format::Quoted => in_quotes(body, |byte, out| match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            _ if printable(byte) => out.push(byte),
            _ => hex(byte, out),
        }),
        Format::Hex => in_quotes(body, hex),
    }
}

fn in_quotes(body: &[u8], each: impl Fn(u8, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 3);
    out.push(b'"');
    body.iter().for_each(|byte| each(*byte, &mut out));
    out.extend(b"\"\n");
    out
}

fn hex(byte: u8, out: &mut Vec<u8>) {
    out.extend(format!("\\x{byte:02x}").into_bytes());
}

fn printable(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"a b\0\xff\"\\\n\r\t~\x7f";

    #[track_caller]
    fn check(how: Format, expected: &[u8]) {
        let got = format(BODY, how);
        assert_eq!(got, expected, "{:?}", String::from_utf8_lossy(&got));
    }

    #[test]
    fn raw_is_the_message_and_nothing_else() {
        check(Format::Raw, BODY);
        assert!(format(b"", Format::Raw).is_empty());
    }

    #[test]
    fn ascii_is_a_line_with_dots() {
        check(Format::Ascii, b"a b..\"\\...~.\n");
        assert_eq!(format(b"", Format::Ascii), b"\n");
    }

    #[test]
    fn quoted_escapes_what_c_would() {
        check(
            Format::Quoted,
            br#""a b\x00\xff\"\\\n\r\x09~\x7f"
"#,
        );
        assert_eq!(format(b"", Format::Quoted), b"\"\"\n");
    }

    #[test]
    fn hex_escapes_everything() {
        assert_eq!(format(b"A\n", Format::Hex), b"\"\\x41\\x0a\"\n");
        assert_eq!(format(b"", Format::Hex), b"\"\"\n");
    }
}
