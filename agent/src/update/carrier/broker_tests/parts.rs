//! A repository with one object, a broker on a port of its own, the programs of this build.

use crate::io::disk::BlockDevice;
use crate::update::plan::Object;
use crate::update::staging::{self, Staging};
use formats::frame::Scope;
use formats::object::{self, BlockSize};
use formats::repository;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const TARGET: &str = "announcements/33b3343b4722dc34-0";

/// The name of a device in topics.
pub fn device(name: &str) -> String {
    super::Identity::device_of(name)
}

/// Resident bytes of this process.
pub fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

pub struct Repository {
    folder: tempfile::TempDir,
    pub object: Object,
    pub announcement: Vec<u8>,
    pub roots: Vec<u8>,
    pub lists: Vec<u8>,
}

impl Repository {
    pub fn new(length: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Bytes that do not compress and differ from block to block.
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let data: Vec<u8> = (0..length).map(|_| byte()).collect();
        let made = object::of(&data, BlockSize::KIB_64).unwrap();
        let (announcement, roots) = (vec![9; 198], (0..9000).map(|n| n as u8).collect::<Vec<_>>());
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put(&repository::object(&made.id), &data);
        put(&repository::lists(&made.id), &made.lists);
        put(TARGET, &announcement);
        put(repository::ROOTS, &roots);
        let object = Object { id: made.id, bytes: length as u64, block_log2: BlockSize::KIB_64.log2() };
        // What the device keeps, as on the state partition.
        let staged = fs::File::create(folder.path().join("staged")).unwrap();
        staged.set_len(staging::bytes(&made.geometry)).unwrap();
        Self { folder, object, announcement, roots, lists: made.lists }
    }

    pub fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// The region that the device keeps the object in.
    pub fn disk(&self) -> BlockDevice {
        BlockDevice::open(&self.folder.path().join("staged")).unwrap()
    }

    /// Bytes that a device must fetch.
    pub fn bytes(&self) -> u64 {
        self.object.bytes + self.lists.len() as u64
    }

    pub fn complete(&self) -> bool {
        let staging = Staging::open(self.disk(), &self.object).unwrap();
        staging.wanted().is_none()
    }
}

/// What a broker demands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Nothing,
    /// TLS, a password for each user, and the access list of `docs/mqtt.acl`.
    Everything,
}

pub struct Broker {
    folder: tempfile::TempDir,
    child: Child,
    pub port: u16,
    guard: Guard,
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; install the packages `mosquitto` and `openssl`")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mosquitto() -> Command {
    let usual = Path::new("/usr/sbin/mosquitto");
    Command::new(if usual.exists() { usual } else { Path::new("mosquitto") })
}

impl Broker {
    pub fn start(guard: Guard) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        // Brokers limit messages; this one lets a little more through than addresses say by themselves.
        let mut text =
            format!("listener {port} 127.0.0.1\nmessage_size_limit 20000\npersistence false\nuser root\n");
        match guard {
            Guard::Nothing => text.push_str("allow_anonymous true\n"),
            Guard::Everything => {
                succeed(
                    Command::new("openssl")
                        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
                        .args([
                            "-nodes",
                            "-days",
                            "2",
                            "-subj",
                            "/CN=localhost",
                            "-addext",
                            "subjectAltName=DNS:localhost",
                        ])
                        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                        .args(["-keyout", &path("key.pem"), "-out", &path("cert.pem")]),
                );
                fs::write(path("secret"), "s3cret\n").unwrap();
                fs::write(path("passwords"), "").unwrap();
                for user in ["server", &device("node"), &device("other")] {
                    succeed(Command::new("mosquitto_passwd").args([
                        "-b",
                        &path("passwords"),
                        user,
                        "s3cret",
                    ]));
                }
                let acl = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mqtt.acl");
                let acl = fs::read_to_string(acl).unwrap();
                fs::write(path("acl"), acl).unwrap();
                text.push_str(&format!(
                    "allow_anonymous false\npassword_file {}\nacl_file {}\ncertfile {}\nkeyfile {}\n",
                    path("passwords"),
                    path("acl"),
                    path("cert.pem"),
                    path("key.pem")
                ));
            }
        }
        fs::write(folder.path().join("mosquitto.conf"), text).unwrap();
        let child = Self::spawn(folder.path(), port);
        Self { folder, child, port, guard }
    }

    fn spawn(folder: &Path, port: u16) -> Child {
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = mosquitto();
        command.arg("-c").arg(folder.join("mosquitto.conf")).stderr(log).stdout(Stdio::null());
        let mut child = command.spawn().expect("start mosquitto: install the package `mosquitto`");
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{}",
                fs::read_to_string(folder.join("log")).unwrap()
            );
            assert!(Instant::now() < deadline, "mosquitto does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    /// Ends it, with all that it knows, and starts it anew.
    pub fn restart(&mut self) {
        self.stop();
        self.resume();
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn resume(&mut self) {
        self.child = Self::spawn(self.folder.path(), self.port);
    }

    /// Its address for a user.
    pub fn url(&self, user: &str) -> String {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        match self.guard {
            Guard::Nothing => format!("mqtt://{user}@127.0.0.1:{}", self.port),
            Guard::Everything => {
                let (ca, secret) = (path("cert.pem"), path("secret"));
                format!("mqtts://{user}@localhost:{}?ca={ca}&password-file={secret}", self.port)
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `farhold serve`.
pub struct Serve {
    child: Child,
    pub url: String,
}

/// The builder's program: as `make` names it, or of the same build.
pub fn farhold() -> PathBuf {
    let beside = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("farhold")
    };
    let path = std::env::var_os("FARHOLD").map_or_else(beside, PathBuf::from);
    assert!(path.exists(), "{} is not there: `cargo build --release --bins` makes it", path.display());
    path
}

/// What `farhold fleet` says.
pub fn fleet(repository: &Repository) -> String {
    let mut command = Command::new(farhold());
    let output = command.arg("fleet").arg(format!("{}/reports", repository.path())).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Serve {
    fn start(repository: &Repository, options: &[&str]) -> Self {
        let mut command = Command::new(farhold());
        command.arg("serve").arg(repository.path()).args(options);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words = line.split(' ').find(|word| word.starts_with("http://"));
        assert!(line.starts_with("serving"), "{line}");
        Self { child, url: words.unwrap_or_default().trim_end_matches('/').to_owned() }
    }

    pub fn http(repository: &Repository, options: &[&str]) -> Self {
        Self::start(repository, &[&["--http", "127.0.0.1:0"], options].concat())
    }

    pub fn mqtt(repository: &Repository, url: &str, options: &[&str]) -> Self {
        Self::start(repository, &[&["--mqtt", url], options].concat())
    }

    pub fn stop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn scopes_name_devices() {
    let Scope::Device(tag) = Scope::device("node") else { panic!() };
    assert_eq!(device("node"), formats::hex::encode(&tag));
}
