//! What a satellite modem (Iridium 9602 and its kin) says: lines of text with binary messages between them. Follows the
//! "ISU AT Command Reference" as far as short burst data needs it.

/// Most bytes of a message up.
pub const UP_MAX: usize = 340;
/// Most bytes of a message down.
pub const DOWN_MAX: usize = 270;
/// Bytes that cost one credit.
pub const CREDIT: usize = 50;
/// Longest line, bytes.
const LINE_MAX: usize = 120;

/// Credits that a message costs; a session without one costs a credit too.
pub fn credits(bytes: usize) -> u64 {
    bytes.div_ceil(CREDIT).max(1) as u64
}

/// How a session ended: `+SBDIX: <MO status>, <MOMSN>, <MT status>, <MTMSN>, <MT length>, <MT queued>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// 0 to 4: what went up arrived; others: it did not.
    pub up: u8,
    /// 0: nothing came; 1: a message came; 2: an error while one was fetched.
    pub down: u8,
    /// Number of the message that came; a repeated one is the same message again.
    pub down_number: u16,
    /// Its bytes.
    pub down_bytes: u16,
    /// Messages that wait.
    pub waiting: u16,
}

impl Session {
    /// Whether what went up arrived.
    pub fn sent(&self) -> bool {
        self.up <= 4
    }
}

/// Something that the modem says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// `OK`.
    Ok,
    /// `ERROR`.
    Error,
    /// `READY`: the binary message may be sent.
    Ready,
    /// `SBDRING`: a message waits at the satellite.
    Ring,
    /// `+CSQ:`: signal strength, 0 to 5.
    Signal(u8),
    /// `+SBDSX:`: whether a ring was not answered, or messages wait.
    Waiting(bool),
    /// `+SBDIX:`.
    Session(Session),
    /// 0 to 3 after a binary message was written: taken, too slow, wrong checksum, wrong length.
    Written(u8),
    /// A message that was read.
    Message(Vec<u8>),
    /// Anything else: echoes, empty and broken lines.
    Noise,
}

/// A binary message as it is written and read: its bytes and their sum.
pub fn with_sum(message: &[u8]) -> Vec<u8> {
    let sum = sum(message);
    [message, &[(sum >> 8) as u8, sum as u8]].concat()
}

fn sum(message: &[u8]) -> u16 {
    message.iter().fold(0u16, |sum, byte| sum.wrapping_add((*byte).into()))
}

/// Cuts what the modem sends into what it says. After `AT+SBDRB` a binary message is expected: length, bytes, sum, the
/// numbers in network order.
#[derive(Debug, Default)]
pub struct Ear {
    buffer: Vec<u8>,
    binary: bool,
}

impl Ear {
    /// A binary message comes next. What was half-heard belongs to before.
    pub fn expect_message(&mut self) {
        self.buffer.clear();
        self.binary = true;
    }

    /// The command failed or took too long: lines come next.
    pub fn expect_lines(&mut self) {
        self.buffer.clear();
        self.binary = false;
    }

    /// Takes a byte; gives what it completes.
    pub fn hear(&mut self, byte: u8) -> Option<Said> {
        if self.binary {
            return self.binary(byte);
        }
        if byte == b'\r' || byte == b'\n' {
            let line = std::mem::take(&mut self.buffer);
            return (!line.is_empty()).then(|| read_line(&line));
        }
        if self.buffer.len() < LINE_MAX {
            self.buffer.push(byte);
        }
        None
    }

    fn binary(&mut self, byte: u8) -> Option<Said> {
        self.buffer.push(byte);
        let [high, low, rest @ ..] = self.buffer.as_slice() else { return None };
        let length = usize::from(*high) << 8 | usize::from(*low);
        if length > DOWN_MAX {
            // No message is so long: a text instead of one, or garbage.
            let error = self.buffer.ends_with(b"ERROR");
            self.binary = false;
            self.buffer.clear();
            return Some(if error { Said::Error } else { Said::Noise });
        }
        if rest.len() < length + 2 {
            return None;
        }
        let message = rest[..length].to_vec();
        let told = u16::from(rest[length]) << 8 | u16::from(rest[length + 1]);
        self.expect_lines();
        Some(if told == sum(&message) { Said::Message(message) } else { Said::Noise })
    }
}

fn read_line(line: &[u8]) -> Said {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    match text {
        "OK" => return Said::Ok,
        "ERROR" => return Said::Error,
        "READY" => return Said::Ready,
        "SBDRING" => return Said::Ring,
        "0" | "1" | "2" | "3" => {
            return Said::Written(line.iter().find(|b| b.is_ascii_digit()).map_or(3, |b| b - b'0'));
        }
        _ => {}
    }
    if let Some(rest) = text.strip_prefix("+CSQ:") {
        return rest.trim().parse().ok().filter(|bars| *bars <= 5).map_or(Said::Noise, Said::Signal);
    }
    let numbers =
        |rest: &str| -> Vec<u16> { rest.split(',').filter_map(|word| word.trim().parse().ok()).collect() };
    if let Some(rest) = text.strip_prefix("+SBDSX:") {
        // MO flag, MOMSN, MT flag, MTMSN, ring alert flag, messages waiting.
        let [.., ring, waiting] = numbers(rest)[..] else { return Said::Noise };
        return Said::Waiting(ring > 0 || waiting > 0);
    }
    let Some(rest) = text.strip_prefix("+SBDIX:") else { return Said::Noise };
    let numbers = numbers(rest);
    let [up, _, down, down_number, down_bytes, waiting] = numbers[..] else { return Said::Noise };
    let (Ok(up), Ok(down)) = (u8::try_from(up), u8::try_from(down)) else { return Said::Noise };
    if down > 2 || usize::from(down_bytes) > DOWN_MAX {
        return Said::Noise;
    }
    Said::Session(Session { up, down, down_number, down_bytes, waiting })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(ear: &mut Ear, bytes: &[u8]) -> Vec<Said> {
        bytes.iter().filter_map(|byte| ear.hear(*byte)).collect()
    }

    #[test]
    fn lines_are_understood() {
        let text = b"+SBDSX: 0, 3, 0, 2, 1, 0\r\nOK\r\nAT+CSQ\r\r\n+CSQ:3\r\n\r\nREADY\r\n\r\n0\r\n\r\nSBDRING\r\nERROR\r\n\r\n+SBDIX: 0, 12, 1, 7, 199, 2\r\n";
        let session = Session { up: 0, down: 1, down_number: 7, down_bytes: 199, waiting: 2 };
        let expected = [
            Said::Waiting(true),
            Said::Ok,
            Said::Noise,
            Said::Signal(3),
            Said::Ready,
            Said::Written(0),
            Said::Ring,
            Said::Error,
            Said::Session(session),
        ];
        assert_eq!(hear(&mut Ear::default(), text), expected);
        for text in [
            "+CSQ:9\r",
            "+SBDIX: 1, 2\r",
            "+SBDIX: 0, 1, 3, 1, 1, 1\r",
            "+SBDIX: 0, 1, 1, 1, 271, 1\r",
            "\u{1}\r",
        ] {
            assert_eq!(hear(&mut Ear::default(), text.as_bytes()), [Said::Noise], "{text}");
        }
    }

    #[test]
    fn binary_messages_are_checked() {
        let mut ear = Ear::default();
        let message: Vec<u8> = (0..199).collect();
        let mut bytes = [&[0, 199], with_sum(&message).as_slice(), b"\r\nOK\r\n"].concat();
        ear.expect_message();
        assert_eq!(hear(&mut ear, &bytes), [Said::Message(message), Said::Ok]);
        bytes[50] ^= 1;
        ear.expect_message();
        assert_eq!(hear(&mut ear, &bytes), [Said::Noise, Said::Ok]);
        ear.expect_message();
        assert_eq!(hear(&mut ear, &[0xff, 0xff])[..], [Said::Noise]);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut ear = Ear::default();
        assert!(hear(&mut ear, &[b'x'; 10_000]).is_empty());
        assert!(ear.buffer.len() <= LINE_MAX);
        assert_eq!(credits(0), 1);
        assert_eq!((credits(50), credits(51), credits(270)), (1, 2, 6));
    }
}
