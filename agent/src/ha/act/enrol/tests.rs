//! Conversations between two nodes, and what a node keeps of them: wrong codes, noise, cuts, what is already there.

use super::*;
use formats::pairing::Request;
use std::thread;

/// A node's memory that says yes, and counts.
struct Any {
    own: Introduction,
    kept: Option<Introduction>,
    proofs: u32,
    no: Option<String>,
}

impl Desk for Any {
    fn proves(&mut self) -> Result<()> {
        self.proofs += 1;
        Ok(())
    }
    fn answer(&mut self, _other: &Introduction) -> Result<Answer> {
        Ok(match &self.no {
            Some(why) => Answer::No(why.clone()),
            None => Answer::Welcome(Box::new(self.own.clone())),
        })
    }
    fn keep(&mut self, other: &Introduction) -> Result<()> {
        self.kept = Some(other.clone());
        Ok(())
    }
}

fn introduction(port: u16) -> Introduction {
    let folder = tempfile::tempdir().unwrap();
    let key = crate::ha::act::identity::Identity::create(folder.path()).unwrap().public();
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    Introduction { voter: Number(port.into()), key, address, site: Some(Number(7)), witness: None }
}

fn any(port: u16) -> Any {
    Any { own: introduction(port), kept: None, proofs: 0, no: None }
}

/// Both ends of a conversation, each with its own code.
fn talk(first: (&str, Any), second: (&str, Any)) -> ((Result<End>, Any), (Result<End>, Any)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (code, mut desk) = (second.0.to_owned(), second.1);
    let caller = thread::spawn(move || {
        let own = desk.own.clone();
        (wire::call(TcpStream::connect(at).unwrap(), &code, &own, &mut desk), desk)
    });
    let (code, mut desk) = first;
    let heard = wire::hear(listener.accept().unwrap().0, code, &mut desk);
    ((heard, desk), caller.join().unwrap())
}

#[test]
fn whoever_has_the_code_is_known_afterwards() {
    let ((heard, first), (called, second)) = talk(("1234-5678", any(1)), ("1234 5678", any(2)));
    assert_eq!((heard.unwrap(), called.unwrap()), (End::Agreed, End::Agreed));
    assert_eq!((first.kept, second.kept), (Some(second.own), Some(first.own)));
    assert_eq!(second.proofs, 1);
}

#[test]
fn another_code_is_seen_by_both_and_nothing_is_kept() {
    let ((heard, first), (called, second)) = talk(("1234-5678", any(1)), ("1234-5679", any(2)));
    assert_eq!((heard.unwrap(), called.unwrap()), (End::Wrong, End::Wrong));
    assert!(first.kept.is_none() && second.kept.is_none());
}

#[test]
fn one_that_is_not_wanted_hears_why_and_nothing_is_kept() {
    let no = Any { no: Some("it met another".into()), ..any(1) };
    let ((heard, first), (called, second)) = talk(("12345678", no), ("12345678", any(2)));
    assert_eq!(heard.unwrap(), End::No("it met another".into()));
    assert_eq!(called.unwrap(), End::No("it met another".into()));
    assert!(first.kept.is_none() && second.kept.is_none());
}

/// What is on the wire can be played again to the other side, or cut anywhere, and gets nobody in.
#[test]
fn noise_and_silence_get_nobody_in() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    for said in
        [vec![], b"GET / HTTP/1.1\r\n\r\n".repeat(4), [b"fh-pair\x01".as_slice(), &[0x42; 33]].concat()]
    {
        let guest = thread::spawn(move || {
            let mut tcp = TcpStream::connect(at).unwrap();
            std::io::Write::write_all(&mut tcp, &said).unwrap();
        });
        let mut desk = any(1);
        wire::hear(listener.accept().unwrap().0, "12345678", &mut desk).unwrap_err();
        assert!(desk.kept.is_none());
        guest.join().unwrap();
    }
}

fn places(folder: &Path) -> Places {
    let base = folder.join("base.json");
    let text = serde_json::json!({
        "state": folder.join("state"), "run": folder.join("run"), "listen": "127.0.0.1:7600", "port": "127.0.0.1:5433",
        "postgres": { "bin": "/nonexistent", "data": folder.join("data") }, "k3s": {},
    });
    std::fs::write(&base, text.to_string()).unwrap();
    Places { folder: folder.to_owned(), base, profile: folder.join("profile.json") }
}

fn second(code: &str) -> Request {
    let text =
        format!(r#"{{"role": "second", "address": "192.0.2.2", "peer": "192.0.2.1", "secret": "{code}"}}"#);
    serde_json::from_str(&text).unwrap()
}

/// A second node that was told a code, and has its keys.
fn prepared(folder: &Path) -> Places {
    let places = places(folder);
    request(&places, &places.request(), &second("1234-5678")).unwrap();
    prepare(&places).unwrap();
    places
}

#[test]
fn what_the_profile_wants_is_in_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let configuration = || places.configuration(&second("1234-5678"), Number(7), None);
    let plain = configuration().unwrap();
    let profile =
        |ha: &str| std::fs::write(&places.profile, format!(r#"{{"product": "x", "ha": {ha}}}"#)).unwrap();
    profile("null");
    assert_eq!(configuration().unwrap(), plain, "a profile of a single node");
    profile(r#"{"on_peer_loss": {"prefer": "second"}, "witness": null, "virtual_ip": "10.77.0.9/24"}"#);
    let config = Config::parse(&configuration().unwrap().to_string()).unwrap();
    assert_eq!(config.on_peer_loss, crate::ha::act::config::PeerLoss::PreferThis);
    assert_eq!(
        config.address.map(|address| (address.ip.to_string(), address.prefix)),
        Some(("10.77.0.9".into(), 24))
    );
    profile(r#"{"on_peer_loss": "sometimes"}"#);
    let said = format!("{:#}", configuration().unwrap_err());
    assert!(said.contains("profile.json") && said.contains("sometimes"), "{said}");
}

#[test]
fn a_request_is_taken_once_and_what_exists_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let places = prepared(folder.path());
    let pending = places.load().unwrap().unwrap();
    assert_eq!((pending.stage, pending.site), (Stage::Waiting, None));
    assert!(!places.request().exists() && !places.config().exists());
    // Done again it changes nothing; another request is refused before it is left.
    prepare(&places).unwrap();
    assert_eq!(places.load().unwrap().unwrap().own, pending.own);
    let again = request(&places, &places.request(), &second("8765-4321")).unwrap_err().to_string();
    assert!(again.contains("another pairing is under way"), "{again}");
    // One that an installer left all the same ends nothing that is under way.
    std::fs::write(places.request(), r#"{"role": "first"}"#).unwrap();
    prepare(&places).unwrap();
    assert_eq!(places.load().unwrap().unwrap().own, pending.own);
    places.end().unwrap();
    std::fs::write(places.request(), r#"{"role": "first"}"#).unwrap();
    prepare(&places).unwrap();
    assert!(places.refused().unwrap().unwrap().why.contains("missing field"));
    let kept = request(&places, &places.request(), &second("8765-4321")).unwrap_err().to_string();
    assert!(kept.contains("one of a pair already"), "{kept}");
}

#[test]
fn after_a_refusal_another_code_goes_on_with_what_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let places = prepared(folder.path());
    let made = places.load().unwrap().unwrap().own;
    places.refuse("another code").unwrap();
    assert!(places.load().unwrap().is_none());
    request(&places, &places.request(), &second("8765-4321")).unwrap();
    prepare(&places).unwrap();
    let pending = places.load().unwrap().unwrap();
    assert_eq!((pending.stage, pending.own, pending.wrong), (Stage::Waiting, made, 0));
    assert!(places.refused().unwrap().is_none());
}

#[test]
fn what_was_cut_off_while_it_was_made_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let pending =
        Pending { request: second("1234-5678"), stage: Stage::Making, wrong: 0, site: None, own: None };
    places.begin(&pending).unwrap();
    std::fs::create_dir_all(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("state/key"), [1; 32]).unwrap();
    prepare(&places).unwrap();
    assert_eq!(places.load().unwrap().unwrap().stage, Stage::Waiting);
}

#[test]
fn ten_wrong_codes_void_a_short_one_and_never_a_long_one() {
    for (code, void) in [("1234-5678", true), ("0123456789abcdef0123456789abcdef", false)] {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let mut request = second(code);
        (request.role, request.peer) = (Role::First, None);
        let pending = Pending { request, stage: Stage::Waiting, wrong: 0, site: Some(Number(3)), own: None };
        places.begin(&pending).unwrap();
        let mut desk = At::open(&places).unwrap();
        let last = (1..=WRONG_MAX).map(|_| desk.another_code("192.0.2.66:1").unwrap()).last();
        assert_eq!(last, Some(void));
        assert_eq!(places.load().unwrap().is_none(), void);
        let why = places.refused().unwrap().map(|refused| refused.why).unwrap_or_default();
        assert_eq!(why.contains("10 callers had another code, the last from 192.0.2.66:1"), void, "{why}");
    }
}
