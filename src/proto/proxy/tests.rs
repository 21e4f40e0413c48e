//! Headers as HAProxy and nginx have sent them (`tests/formats/proxy`), and headers that are not valid.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const ALL: [ProxyVersion; 3] = [ProxyVersion::V1, ProxyVersion::V2, ProxyVersion::Any];

/// Returns the captured headers, each with its file's name, the source that the file names, and the bytes.
fn samples() -> Vec<(String, String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/proxy");
    let mut samples = Vec::new();
    for entry in fs::read_dir(directory).expect("the samples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "hex") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let source = text.lines().find_map(|line| line.strip_prefix("# source "));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let digits = lines.flat_map(str::chars).filter(|c| !c.is_whitespace());
        let digits: Vec<u8> = digits.map(|c| c.to_digit(16).expect("hex") as u8).collect();
        let bytes = digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        samples.push((name, source.expect("a source").to_owned(), bytes));
    }
    samples.sort();
    samples
}

fn shown(source: ProxySource) -> String {
    match source {
        ProxySource::Local => "local".to_owned(),
        ProxySource::Address(address) => address.to_string(),
        ProxySource::Unknown => "unknown".to_owned(),
    }
}

/// Returns a header of version 2 with this command, family and rest.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// Returns the rest of a header of version 2 over IPv4.
fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    [&[192, 0, 2, 10, 192, 0, 2, 20, 1, 2, 3, 4][..], tlvs].concat()
}

/// Sets the checksum of a header, whose last TLV is the one with it.
fn seal(mut header: Vec<u8>) -> Vec<u8> {
    let at = header.len() - 4;
    let sum = checksum(&header[..at], &[]);
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

fn fault_of(bytes: &[u8]) -> ProxyFault {
    read(bytes, ProxyVersion::Any).expect_err("it is not valid")
}

#[test]
fn captured_headers_are_read_whole_and_split_at_every_byte() {
    let samples = samples();
    assert!(samples.len() >= 8, "{samples:?}");
    for (name, source, bytes) in &samples {
        for accepted in ALL {
            let is_line = bytes.starts_with(WORD);
            let is_accepted = match accepted {
                ProxyVersion::V1 => is_line,
                ProxyVersion::V2 => !is_line,
                ProxyVersion::Any => true,
            };
            let more = [bytes, &b"\x0d\0\0\0{\"in\":\"ping\"}"[..]].concat();
            for length in 0..=more.len() {
                let found = read(&more[..length], accepted);
                let known = if is_line { WORD.len() } else { SIGNATURE.len() };
                if !is_accepted && length >= known {
                    assert!(
                        matches!(found, Err(ProxyFault::Version(_))),
                        "{name} {length}"
                    );
                } else if length < bytes.len() {
                    assert_eq!(found, Ok(None), "{name} {length}");
                } else {
                    let header = found.expect("it is valid").expect("it is complete");
                    assert_eq!(header.length, bytes.len(), "{name}");
                    assert_eq!(&shown(header.source), source, "{name}");
                }
            }
        }
    }
}

#[test]
fn each_form_of_a_line_has_its_source() {
    for (line, expected) in [
        ("TCP4 192.0.2.10 192.0.2.20 44784 7101", "192.0.2.10:44784"),
        (
            "TCP4 255.255.255.255 0.0.0.0 65535 0",
            "255.255.255.255:65535",
        ),
        ("TCP6 2001:db8::1 ::1 1 2", "[2001:db8::1]:1"),
        (
            "TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ),
        ("UNKNOWN", "unknown"),
        ("UNKNOWN 192.0.2.10 192.0.2.20 44784 7101", "unknown"),
        ("UNKNOWN whatever it is", "unknown"),
    ] {
        let bytes = format!("PROXY {line}\r\n");
        let header = read(bytes.as_bytes(), ProxyVersion::V1);
        let header = header.expect(line).expect(line);
        assert_eq!(
            (header.length, shown(header.source)),
            (bytes.len(), expected.to_owned())
        );
    }
}

#[test]
fn a_line_that_is_not_valid_is_refused() {
    let protocol = "its protocol is not TCP4, TCP6 or UNKNOWN";
    let (address, ports) = ("an address is not valid", "it does not end with two ports");
    for (line, expected) in [
        ("\r\n", protocol),
        ("UDP4 192.0.2.1 192.0.2.2 1 2\r\n", protocol),
        ("tcp4 192.0.2.1 192.0.2.2 1 2\r\n", protocol),
        (" TCP4 192.0.2.1 192.0.2.2 1 2\r\n", protocol),
        ("TCP4 192.0.2.1 192.0.2.2 1\r\n", ports),
        ("TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", ports),
        ("TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", ports),
        ("TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", ports),
        ("TCP4 192.0.2.1 192.0.2.2 01 2\r\n", ports),
        ("TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", ports),
        ("TCP4 192.0.2.1  192.0.2.2 1 2\r\n", address),
        ("TCP4 192.0.2.01 192.0.2.2 1 2\r\n", address),
        ("TCP4 ::1 ::1 1 2\r\n", address),
        ("TCP6 192.0.2.1 192.0.2.2 1 2\r\n", address),
        (
            "TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "its line does not end with CR and LF",
        ),
        ("UNKNOWN \u{e4}\r", "its line does not end within 107 bytes"),
    ] {
        let mut bytes = format!("PROXY {line}").into_bytes();
        if !bytes.ends_with(b"\n") {
            bytes.resize(MAX_LINE, b'x');
        }
        assert_eq!(
            fault_of(&bytes),
            ProxyFault::Malformed(expected),
            "{line:?}"
        );
    }
    let longest =
        |length: usize| [&b"PROXY UNKNOWN "[..], &vec![b'x'; length - 16], b"\r\n"].concat();
    assert!(read(&longest(MAX_LINE), ProxyVersion::V1).is_ok_and(|header| header.is_some()));
    assert!(matches!(
        fault_of(&longest(MAX_LINE + 1)),
        ProxyFault::Malformed(_)
    ));
}

#[test]
fn local_connections_and_those_without_an_ip_address_are_read() {
    for (bytes, expected) in [
        (binary(0x20, 0x00, &[]), "local"),
        (binary(0x20, 0x11, &with_tlvs(&[])), "local"),
        (binary(0x20, 0x11, &[]), "local"),
        (binary(0x20, 0x21, b"short"), "local"),
        (binary(0x20, 0x12, &with_tlvs(&[])), "local"),
        (binary(0x20, 0x77, b"anything"), "local"),
        (binary(0x20, 0x00, &tlv(4, b"noop")), "local"),
        (binary(0x21, 0x00, &[]), "unknown"),
        (binary(0x21, 0x31, &[7; 216]), "unknown"),
        (
            binary(0x21, 0x11, &with_tlvs(&tlv(0xe0, &[9; 4000]))),
            "192.0.2.10:258",
        ),
    ] {
        let header = read(&bytes, ProxyVersion::V2)
            .expect("valid")
            .expect("complete");
        assert_eq!(
            (header.length, shown(header.source)),
            (bytes.len(), expected.to_owned())
        );
    }
}

#[test]
fn a_binary_header_that_is_not_valid_is_refused() {
    let too_long = "a TLV is longer than the rest of it";
    let announced = |length: u16| {
        let length = length.to_be_bytes();
        [SIGNATURE, &[0x21, 0x11], &length].concat()
    };
    for (bytes, expected) in [
        (binary(0x11, 0x11, &with_tlvs(&[])), "its version is not 2"),
        (binary(0x31, 0x11, &with_tlvs(&[])), "its version is not 2"),
        (
            binary(0x22, 0x11, &with_tlvs(&[])),
            "its command is unknown",
        ),
        (binary(0x21, 0x12, &with_tlvs(&[])), "it is of datagrams"),
        (binary(0x21, 0x22, &[0; 36]), "it is of datagrams"),
        (binary(0x21, 0x10, &with_tlvs(&[])), "its family is unknown"),
        (binary(0x21, 0x41, &with_tlvs(&[])), "its family is unknown"),
        (
            binary(0x21, 0x11, &[0; 11]),
            "it is too short for its addresses",
        ),
        (
            binary(0x21, 0x21, &[0; 35]),
            "it is too short for its addresses",
        ),
        (
            binary(0x21, 0x31, &[0; 215]),
            "it is too short for its addresses",
        ),
        (announced(4097), "it is longer than 4112 bytes"),
        (binary(0x21, 0x11, &with_tlvs(&[5])), too_long),
        (binary(0x21, 0x11, &with_tlvs(&[5, 0, 2, 1])), too_long),
        (
            binary(0x21, 0x11, &with_tlvs(&[5, 0xff, 0xff, 1])),
            too_long,
        ),
        (
            binary(0x21, 0x11, &with_tlvs(&tlv(3, &[0; 3]))),
            "its checksum is not 4 bytes long",
        ),
    ] {
        assert_eq!(
            fault_of(&bytes),
            ProxyFault::Malformed(expected),
            "{bytes:02x?}"
        );
    }
}

#[test]
fn a_wrong_byte_is_found_by_the_checksum() {
    let header = seal(binary(0x21, 0x11, &with_tlvs(&tlv(CRC32C, &[0; 4]))));
    assert!(read(&header, ProxyVersion::V2).is_ok());
    // From the addresses on, every byte is a valid one.
    for at in (FIXED_LEN..FIXED_LEN + 12).chain(header.len() - 4..header.len()) {
        let mut wrong = header.clone();
        wrong[at] ^= 1;
        assert_eq!(fault_of(&wrong), ProxyFault::Checksum, "{at}");
    }
    // The check value of this checksum, by RFC 9260 and its predecessors.
    let sum = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            CRC_TABLE[(crc as u8 ^ byte) as usize] ^ (crc >> 8)
        })
    };
    assert_eq!(sum(b"123456789"), 0xe306_9283);
}

#[test]
fn bytes_that_are_no_header_are_known_by_the_first_wrong_one() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"POST",
        b"\x0d\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"PROXY\t",
        b"\0",
    ] {
        assert_eq!(fault_of(bytes), ProxyFault::Missing, "{bytes:?}");
    }
    assert_eq!(fault_of(b"PO"), ProxyFault::Missing);
    assert_eq!(read(b"", ProxyVersion::Any), Ok(None));
    assert_eq!(read(b"P", ProxyVersion::V2), Ok(None));
}

proptest! {
    /// A header that is complete stays so, and one that is refused is refused for ever.
    #[test]
    fn bytes_in_any_order_do_not_panic_and_more_change_nothing(
        begin in prop::sample::select(vec![&b""[..], WORD, b"PROXY TCP4 ", SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20"]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [begin, &rest[..]].concat();
        let whole = read(&bytes, ProxyVersion::Any);
        for length in 0..bytes.len() {
            match read(&bytes[..length], ProxyVersion::Any) {
                Ok(None) => {}
                decided => prop_assert_eq!(decided, whole),
            }
        }
    }
}
