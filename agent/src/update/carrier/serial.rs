//! A serial line: `serial:/dev/ttyUSB0?baud=9600`. At its other end is `farhold serve --serial`. With `modem=sbd` the
//! device is a satellite modem, see [`super::satellite`].

use super::linked::Messages;
use super::{Failure, Toll};
use crate::io::clock::boot_ms;
use crate::update::step::Fault;
use formats::link::line::{Deframer, frame};
use formats::link::message::Message;
use formats::link::pull::Settings;
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

/// Bits per second where the address does not say.
const BAUD: u32 = 115_200;
/// How long a line may take no byte: flow control can hold it.
const STUCK: Duration = Duration::from_secs(60);
/// How long nothing is read before whoever waits is asked whether it still wants to.
const PAUSE_MS: u64 = 500;

/// An address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's path.
    pub device: String,
    /// Bits per second.
    pub baud: u32,
    /// Whether it is a satellite modem.
    pub satellite: bool,
    /// Milliseconds between two sessions of a satellite modem.
    pub session_ms: u64,
    /// Longest wait before a lost request is sent again, ms: less on a line that is up for moments only.
    pub wait_ms: u64,
    /// Where the newest announcement that came by satellite is kept.
    pub kept: String,
}

impl Address {
    /// Reads `serial:DEVICE[?baud=N&wait_ms=N&modem=sbd&session_ms=N&kept=FILE]`.
    ///
    /// # Errors
    /// Which word is wrong.
    pub fn parse(source: &str) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(Fault::Absent, format!("{source} is not a source: {why}"));
        let rest = source.strip_prefix("serial:").unwrap_or(source);
        let (device, words) = rest.split_once('?').unwrap_or((rest, ""));
        let mut address = Self {
            device: device.to_owned(),
            baud: BAUD,
            satellite: false,
            session_ms: super::satellite::SESSION_MS,
            wait_ms: Settings::SERIAL.wait_max_ms,
            kept: super::satellite::KEPT.to_owned(),
        };
        if !device.starts_with('/') {
            return Err(wrong("a device follows `serial:`, as /dev/ttyUSB0".into()));
        }
        for word in words.split('&').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse::<u32>().ok().filter(|number| *number > 0);
            match key {
                "baud" => address.baud = number().ok_or_else(|| wrong(format!("baud={value} is no rate")))?,
                "modem" if value == "sbd" => address.satellite = true,
                "session_ms" | "wait_ms" => {
                    let ms = number().ok_or_else(|| wrong(format!("{key}={value} is no time")))?.into();
                    *(if key == "wait_ms" { &mut address.wait_ms } else { &mut address.session_ms }) = ms;
                }
                "kept" => address.kept = value.to_owned(),
                _ => {
                    return Err(wrong(format!(
                        "`{word}` must be baud=…, wait_ms=…, modem=sbd, session_ms=… or kept=…"
                    )));
                }
            }
        }
        Ok(address)
    }
}

/// An open port, used from a thread that may wait.
pub struct Port {
    stream: SerialStream,
    runtime: Runtime,
    pub device: String,
}

impl Port {
    /// Opens a port: eight bits, no parity, no flow control.
    ///
    /// # Errors
    /// [`Fault::Unreachable`]: adapters are unplugged and come back; a port that another transfer uses, which the
    /// crate's lock tells, is taken later.
    pub fn open(address: &Address) -> Result<Self, Failure> {
        let Address { device, baud, .. } = address;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::new(Fault::Local, format!("start a loop: {error}")))?;
        let opened = {
            let _inside = runtime.enter();
            tokio_serial::new(device, *baud).open_native_async()
        };
        let stream = opened.map_err(|error| {
            Failure::new(Fault::Unreachable(None), format!("open {device} at {baud} bit/s: {error}"))
        })?;
        Ok(Self { stream, runtime, device: device.clone() })
    }

    fn within<T>(
        runtime: &Runtime,
        time: Duration,
        act: impl Future<Output = std::io::Result<T>>,
    ) -> Option<std::io::Result<T>> {
        runtime.block_on(async { tokio::time::timeout(time, act).await.ok() })
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// [`Fault::Unreachable`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let why = match Self::within(&self.runtime, STUCK, self.stream.write_all(bytes)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error.to_string(),
            None => format!("it took no bytes for {} s", STUCK.as_secs()),
        };
        Err(Failure::new(Fault::Unreachable(None), format!("write to {}: {why}", self.device)))
    }

    /// Reads what there is; nothing if nothing came until `until_ms`, or for a short while.
    ///
    /// # Errors
    /// [`Fault::Unreachable`].
    pub fn read(&mut self, buffer: &mut [u8], until_ms: u64) -> Result<usize, Failure> {
        let wait = until_ms.saturating_sub(boot_ms()).min(PAUSE_MS);
        let why = match Self::within(&self.runtime, Duration::from_millis(wait), self.stream.read(buffer)) {
            None => return Ok(0),
            Some(Ok(0)) => "it was closed".to_owned(),
            Some(Ok(n)) => return Ok(n),
            Some(Err(error)) => error.to_string(),
        };
        Err(Failure::new(Fault::Unreachable(None), format!("read from {}: {why}", self.device)))
    }
}

/// Messages in frames.
pub struct Line {
    port: Port,
    settings: Settings,
    deframer: Deframer,
    ready: VecDeque<Message>,
}

impl Line {
    /// A line on a port.
    pub fn new(port: Port, address: &Address) -> Self {
        let within = |ms: u64| ms.min(address.wait_ms);
        let usual = Settings::SERIAL;
        let settings = Settings {
            first_wait_ms: within(usual.first_wait_ms),
            wait_min_ms: within(usual.wait_min_ms),
            wait_max_ms: address.wait_ms,
            ..usual
        };
        Self { port, settings, deframer: Deframer::default(), ready: VecDeque::new() }
    }
}

impl Messages for Line {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn now_ms(&self) -> u64 {
        boot_ms()
    }

    fn send(&mut self, message: &Message, toll: &mut dyn Toll) -> Result<(), Failure> {
        let bytes = frame(&message.encode());
        toll.paid(bytes.len() as u64)?;
        self.port.write(&bytes)
    }

    fn receive(&mut self, until_ms: u64, toll: &mut dyn Toll) -> Result<Option<Message>, Failure> {
        let mut buffer = [0; 1024];
        while self.ready.is_empty() {
            let n = self.port.read(&mut buffer, until_ms)?;
            toll.paid(n as u64)?;
            let messages = self.deframer.push(&buffer[..n]);
            self.ready.extend(messages.iter().filter_map(|bytes| Message::parse(bytes)));
            // Noise without end is no reason to listen without end.
            if self.ready.is_empty() && boot_ms() >= until_ms {
                return Ok(None);
            }
        }
        Ok(self.ready.pop_front())
    }

    fn name(&self) -> &str {
        &self.port.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address = Address::parse("serial:/dev/ttyS1?baud=2400&modem=sbd&session_ms=50&kept=/x").unwrap();
        assert_eq!((address.device.as_str(), address.baud, address.satellite), ("/dev/ttyS1", 2400, true));
        assert_eq!((address.session_ms, address.kept.as_str()), (50, "/x"));
        assert_eq!(Address::parse("serial:/dev/ttyS1").unwrap().baud, BAUD);
        assert_eq!(Address::parse("serial:/dev/ttyS1?wait_ms=60").unwrap().wait_ms, 60);
        for source in
            ["serial:ttyS1", "serial:/dev/x?baud=fast", "serial:/dev/x?modem=fax", "serial:/dev/x?baud=0"]
        {
            assert_eq!(Address::parse(source).unwrap_err().fault, Fault::Absent, "{source}");
        }
    }
}
