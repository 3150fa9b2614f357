//! The first packets of Postgres' protocol, as far as the agent looks into them before it connects anybody.
//!
//! PostgreSQL documentation, "Message Formats": SSLRequest, GSSENCRequest, CancelRequest, StartupMessage, ErrorResponse.
//! It does not know where a session leads.

use super::settings::OWNER;

/// Longest startup packet that Postgres takes, bytes (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_MAX: usize = 10_000;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// Asks for encryption; the answer is `N`: the port is local.
    Encryption,
    /// Asks to cancel a statement: swallowed, since a cancelled wait for the standby reports success.
    Cancel,
    /// Begins a session.
    Session(Session),
}

/// The parameters of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    parameters: Vec<(String, String)>,
}

/// Reads a first packet without its length.
///
/// # Errors
/// What is wrong with it.
pub fn parse(packet: &[u8]) -> Result<First, &'static str> {
    let (code, rest) = packet.split_first_chunk::<4>().ok_or("a first packet is too short")?;
    let code = code.iter().fold(0_u32, |code, byte| code << 8 | u32::from(*byte));
    match (code >> 16, code & 0xffff) {
        (1234, 5678) => Ok(First::Cancel),
        (1234, 5679 | 5680) => Ok(First::Encryption),
        (3, _) => parameters(rest).map(|parameters| First::Session(Session { parameters })),
        (_, _) => Err("the client speaks another version of the protocol than 3"),
    }
}

fn parameters(mut rest: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    let mut text = || {
        let end =
            rest.iter().position(|byte| *byte == 0).ok_or("a startup packet ends within a parameter")?;
        let (text, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        std::str::from_utf8(text).map(str::to_owned).ok().ok_or("a startup parameter is no text")
    };
    let mut parameters = Vec::new();
    loop {
        let name = text()?;
        if name.is_empty() {
            return Ok(parameters);
        }
        parameters.push((name, text()?));
    }
}

impl Session {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a client of the datastore may begin this session.
    ///
    /// # Errors
    /// Why not.
    pub fn check_client(&self, database: &str) -> Result<(), &'static str> {
        if self.get("user") != Some(database) {
            return Err("this port lets only the owner of the datastore in");
        }
        if self.get("database").unwrap_or(database) != database {
            return Err("this port leads to the datastore only");
        }
        if self.get("replication").is_some() {
            return Err("this port does not replicate");
        }
        let lowers = |text: &str| text.to_ascii_lowercase().contains("synchronous_commit");
        if self.parameters.iter().any(|(name, value)| lowers(name) || (name == "options" && lowers(value))) {
            return Err("synchronous_commit cannot be changed here: every commit must reach both nodes");
        }
        Ok(())
    }

    /// Whether this is the standby of this name.
    ///
    /// # Errors
    /// Why not.
    pub fn check_standby(&self, name: &str) -> Result<(), &'static str> {
        if self.get("user") != Some(OWNER) || self.get("replication") != Some("true") {
            return Err("only the standby's replication passes here");
        }
        if self.get("application_name") != Some(name) {
            return Err("the standby uses the name of another epoch");
        }
        Ok(())
    }

    /// Whether this may be a copy or a rewind.
    ///
    /// # Errors
    /// Why not.
    pub fn check_copy(&self) -> Result<(), &'static str> {
        if self.get("user") == Some(OWNER) { Ok(()) } else { Err("only the agent copies") }
    }
}

/// An error that ends a session, as Postgres would send it.
pub fn error(code: &str, message: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (kind, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', message)] {
        fields.push(kind);
        fields.extend(text.as_bytes());
        fields.push(0);
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    let mut packet = vec![b'E'];
    packet.extend((0..4).rev().map(|byte| (length >> (8 * byte) & 0xff) as u8));
    packet.extend(fields);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(parameters: &[&str]) -> Result<First, &'static str> {
        let mut packet = vec![0, 3, 0, 0];
        parameters.iter().for_each(|text| {
            packet.extend(text.as_bytes());
            packet.push(0);
        });
        packet.push(0);
        parse(&packet)
    }

    fn client(parameters: &[&str]) -> Result<(), &'static str> {
        let Ok(First::Session(session)) = session(parameters) else { panic!("no session") };
        session.check_client("kine")
    }

    #[test]
    fn trap_05_cancel_requests_are_known_and_durability_cannot_be_lowered() {
        assert_eq!(parse(&[4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2]), Ok(First::Cancel));
        assert_eq!(parse(&[4, 210, 22, 47]), Ok(First::Encryption));
        assert_eq!(client(&["user", "kine", "database", "kine"]), Ok(()));
        assert_eq!(client(&["user", "kine"]), Ok(()));
        for lowered in [
            ["user", "kine", "synchronous_commit", "off"],
            ["user", "kine", "options", "-c Synchronous_Commit=local"],
        ] {
            assert!(client(&lowered).unwrap_err().contains("both nodes"));
        }
    }

    #[test]
    fn strangers_and_malformed_packets_are_refused() {
        assert!(client(&["user", "farhold"]).is_err());
        assert!(client(&["user", "kine", "database", "postgres"]).is_err());
        assert!(client(&["user", "kine", "replication", "true"]).is_err());
        assert!(parse(&[0, 3]).is_err());
        assert!(parse(&[0, 2, 0, 0]).is_err());
        assert!(parse(&[0, 3, 0, 0, b'u', b's']).is_err());
        assert!(parse(&[0, 3, 0, 0, 0xff, 0, 0, 0]).is_err());
    }

    #[test]
    fn only_the_standby_of_this_epoch_replicates() {
        let standby = |name| match session(&["user", OWNER, "replication", "true", "application_name", name])
        {
            Ok(First::Session(session)) => session.check_standby("farhold_2_7"),
            other => panic!("{other:?}"),
        };
        assert_eq!(standby("farhold_2_7"), Ok(()));
        assert!(standby("farhold_2_6").is_err());
    }
}
