//! Settings of a profile as files of the image: network, time, proxy, logs. Pure: text in, text out.

pub mod modem;
pub mod network;
pub mod system;

/// A file that settings give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Absolute path in the image.
    pub path: String,
    /// Contents.
    pub text: String,
    /// Permission bits.
    pub mode: u32,
}

impl TextFile {
    /// A file that everybody may read.
    pub fn public(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into(), mode: 0o644 }
    }
    /// A file with a secret.
    pub fn secret(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into(), mode: 0o600 }
    }
}
