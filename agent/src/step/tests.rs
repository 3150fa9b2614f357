//! The agent's decisions on every kind of start, and the text that people get of them.

use super::*;
use crate::render;
use formats::boot::{Partitions, SlotFacts, Watchdog};
use formats::hex::Digest;
use formats::layout::Slot;
use formats::status::Severity;
use std::path::PathBuf;

const ROOTHASH: Digest = Digest([0xab; 32]);

fn observed() -> Observed {
    Observed { slot: Slot::A, roothash: ROOTHASH, version: "1.0.0".into(), kernel: "6.12.1".into() }
}

fn boot_facts() -> BootFacts {
    let pair = |n: u8| [format!("/dev/vda{n}"), format!("/dev/vda{}", n + 2)];
    BootFacts {
        slot: Slot::A,
        roothash: ROOTHASH,
        version: "1.0.0".into(),
        disk: "/dev/vda".into(),
        partitions: Partitions {
            esp: "/dev/vda1".into(),
            root: pair(2),
            verity: pair(3),
            state: Some("/dev/vda6".into()),
        },
        trial: false,
        slots: vec![SlotFacts { slot: Slot::A, complete: Some(ROOTHASH) }],
        watchdog: Some(Watchdog { device: "/dev/watchdog0".into(), timeout_s: 300 }),
        init_ms: [1000, 2000],
        firmware_us: None,
        notes: Vec::new(),
    }
}

fn persistent() -> StateFacts {
    StateFacts::Persistent {
        device: "/dev/vda6".into(),
        bytes: 2 << 30,
        made: true,
        grown_bytes: 1 << 30,
        repaired: false,
    }
}

fn early(state: StateFacts) -> EarlyFacts {
    EarlyFacts { state, identity_made: true, etc: Vec::new(), early_ms: [1100, 1900], notes: Vec::new() }
}

/// A first boot on which all is well; tests change what they are about.
fn healthy() -> Booted {
    let facts = Facts {
        node: "edge-0123abcd".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "11111111-2222-3333-4444-555555555555".into(),
        profile: ProfileId {
            name: "edge-minimal".into(),
            product: "edge".into(),
            arch: "x86_64".into(),
            board: "vm".into(),
        },
        boot: Some(boot_facts()),
        early: Some(early(persistent())),
        observed: Some(observed()),
        fallback: None,
        unread: Vec::new(),
    };
    Booted { facts, loaded: Loaded::default(), condition: Condition::Ready }
}

fn look() -> Look {
    let system = SystemView { state: "running".into(), feeds_watchdog: true, ..SystemView::default() };
    let room = Some(Room { bytes: 2 << 30, free_bytes: 1 << 30, free_files: Some(9) });
    Look { system: Ok(system), room, ha: None }
}

fn start(booted: Booted) -> (State, Outcome) {
    State::new().step(Event::Booted(Box::new(booted)), 5_000)
}

fn ready(booted: Booted, look: Look) -> State {
    start(booted).0.step(Event::Settled(look), 20_000).0
}

fn codes(state: &State) -> Vec<String> {
    state.findings().into_iter().map(|finding| finding.code).collect()
}

#[test]
fn a_first_boot_records_the_factory_release_before_it_is_announced() {
    let (state, outcome) = start(healthy());
    assert_eq!((state.agent, outcome.effects), (AgentState::Starting, Vec::new()));
    assert!(matches!(&outcome.records[0], Record::Boot { trial: false, observed: Some(_), .. }));
    let desired = Desired { version: "1.0.0".into(), roothash: ROOTHASH, source: "factory".into() };
    assert!(outcome.records.contains(&Record::Desired(desired)));
    let (state, outcome) = state.step(Event::Settled(look()), 20_000);
    assert_eq!((state.agent, state.ready_ms), (AgentState::Running, 20_000));
    assert_eq!(outcome.effects, [Effect::Announce]);
    assert_eq!(
        state.announcement(),
        format!("farhold: running slot=a version=1.0.0 roothash={ROOTHASH} ready_ms=20000")
    );
}

#[test]
fn a_second_boot_keeps_what_is_desired_and_says_if_something_else_runs() {
    let mut booted = healthy();
    let desired = Desired { version: "2.0.0".into(), roothash: Digest([1; 32]), source: "operator".into() };
    booted.loaded = Loaded {
        desired: Some(desired.clone()),
        observed: Some(observed()),
        events: Vec::new(),
        boots: 7,
        ..Loaded::default()
    };
    let (state, outcome) = start(booted);
    assert_eq!((state.desired.clone(), state.boots), (Some(desired), 8));
    assert!(!outcome.records.iter().any(|r| matches!(r, Record::Desired(_) | Record::Observed(_))));
    assert_eq!(codes(&state), ["release-differs"]);
}

#[test]
fn a_restart_in_the_same_boot_is_not_another_boot() {
    let (first, _) = start(healthy());
    let mut booted = healthy();
    booted.loaded.events = first.events.clone();
    booted.loaded.boots = 1;
    let (state, outcome) = start(booted);
    assert_eq!(state.boots, 1);
    assert!(!outcome.records.iter().any(|r| matches!(r, Record::Boot { .. })));
    assert_eq!(state.events[0].code, "restart");
}

#[test]
fn what_runs_is_called_desired_only_where_that_is_kept() {
    let cases: [fn(&mut Booted); 5] = [
        |b| b.facts.early = Some(early(StateFacts::Ephemeral { why: "x".into() })),
        |b| b.facts.early = Some(early(StateFacts::ReadOnly { device: "/dev/vda6".into(), why: "x".into() })),
        |b| b.facts.early = None,
        |b| b.condition = Condition::Newer { found: 2, known: 1 },
        |b| b.condition = Condition::Unavailable { why: "x".into() },
    ];
    for change in cases {
        let mut booted = healthy();
        change(&mut booted);
        let (state, outcome) = start(booted);
        assert_eq!(state.desired, None);
        assert!(!outcome.records.iter().any(|r| matches!(r, Record::Desired(_))));
    }
}

#[test]
fn a_fallback_is_told_and_its_record_removed_only_when_the_device_is_up() {
    let mut booted = healthy();
    booted.facts.fallback =
        Some(Fallback { why: "slot a: EIO".into(), asked: vec!["1.0_aaaaaaaa.efi".into()] });
    let (state, outcome) = start(booted);
    assert!(outcome.effects.is_empty());
    let (state, outcome) = state.step(Event::Settled(look()), 20_000);
    assert_eq!(outcome.effects, [Effect::Announce, Effect::ClearFallback]);
    assert_eq!((codes(&state), state.agent), (vec!["boot-fallback".to_owned()], AgentState::Degraded));
}

/// A change to a healthy start, and the one finding that it must lead to.
type Case = (&'static str, fn(&mut Booted, &mut Look));

const CASES: [Case; 16] = [
    ("state-ephemeral", |b, _| {
        b.facts.early = Some(early(StateFacts::Ephemeral { why: "no marker".into() }))
    }),
    ("state-read-only", |b, _| {
        b.facts.early = Some(early(StateFacts::ReadOnly { device: "/dev/vda6".into(), why: "EROFS".into() }));
    }),
    ("state-full", |_, l| l.room = Some(Room { bytes: 2 << 30, free_bytes: 0, free_files: Some(5) })),
    ("state-full", |_, l| l.room = Some(Room { bytes: 2 << 30, free_bytes: 1 << 30, free_files: Some(0) })),
    ("state-low", |_, l| l.room = Some(Room { bytes: 2 << 30, free_bytes: 1 << 20, free_files: None })),
    ("store-newer", |b, _| b.condition = Condition::Newer { found: 2, known: 1 }),
    ("store-full", |b, _| b.condition = Condition::Full { why: "disk is full".into() }),
    ("store-read-only", |b, _| b.condition = Condition::ReadOnly { why: "EROFS".into() }),
    ("store-unavailable", |b, _| b.condition = Condition::Unavailable { why: "EIO".into() }),
    ("store-salvaged", |b, _| {
        let aside = PathBuf::from("/var/lib/farhold/agent.db.corrupt-1");
        b.condition = Condition::Salvaged { aside, rows: 12, why: "malformed".into() };
    }),
    ("root-unverified", |b, _| b.facts.observed = None),
    ("facts-missing", |b, _| b.facts.unread.push("read /run/farhold/boot.json: not there".into())),
    ("boot-note", |b, _| {
        if let Some(boot) = &mut b.facts.boot {
            boot.notes.push("slot a: EIO".into());
        }
    }),
    ("units-failed", |_, l| {
        let failed = vec!["ssh.service".into()];
        l.system =
            Ok(SystemView { state: "degraded".into(), failed, feeds_watchdog: true, jobs: Vec::new() });
    }),
    ("watchdog-unfed", |_, l| {
        l.system = Ok(SystemView { state: "running".into(), ..SystemView::default() });
    }),
    ("system-unknown", |_, l| l.system = Err("no answer".into())),
];

#[test]
fn every_trouble_has_its_finding_a_next_step_and_degrades_the_agent() {
    assert_eq!(codes(&ready(healthy(), look())), Vec::<String>::new());
    for (code, change) in CASES {
        let (mut booted, mut look) = (healthy(), look());
        change(&mut booted, &mut look);
        let state = ready(booted, look);
        assert_eq!(codes(&state), [code]);
        assert_eq!(state.agent, AgentState::Degraded, "{code}");
        let finding = state.findings().remove(0);
        assert!(!finding.next.is_empty() && !finding.message.is_empty());
    }
}

#[test]
fn a_store_that_fails_later_is_told_until_it_works_again() {
    let state = ready(healthy(), look());
    let (state, _) = state.step(Event::StoreFailed("database or disk is full".into()), 30_000);
    assert_eq!((codes(&state), state.agent), (vec!["store-failed".to_owned()], AgentState::Degraded));
    let (state, _) = state.step(Event::StoreWorks, 31_000);
    assert_eq!((codes(&state), state.agent), (Vec::new(), AgentState::Running));
}

#[test]
fn the_worst_comes_first() {
    let (mut booted, mut look) = (healthy(), look());
    for (_, change) in CASES {
        change(&mut booted, &mut look);
    }
    let findings = ready(booted, look).findings();
    assert!(findings.is_sorted_by_key(|finding| finding.severity));
    assert_eq!(findings[0].severity, Severity::Error);
}

/// Compares with a file below `tests/golden`; `UPDATE=1` writes it anew.
fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "differs from {name}; UPDATE=1 accepts it");
}

#[test]
fn people_read_one_screen() {
    let healthy_state = ready(healthy(), look());
    golden("status-healthy.txt", &render::status(&healthy_state.status(65_500, 6_500_000)));
    golden("why-healthy.txt", &render::why(&healthy_state.why()));
    let (mut booted, mut look) = (healthy(), look());
    for code in ["state-ephemeral", "store-unavailable", "units-failed"] {
        let (_, change) = CASES.iter().find(|(name, _)| *name == code).unwrap();
        change(&mut booted, &mut look);
    }
    let state = ready(booted, look);
    golden("status-without-state.txt", &render::status(&state.status(7_500_000, 6_500_000)));
    golden("why-without-state.txt", &render::why(&state.why()));
    let mut stopped = healthy_state.status(200_000, 0);
    stopped
        .findings
        .insert(0, crate::offline::finding("connect to /run/farhold/agent.sock: Connection refused"));
    golden("status-agent-not-running.txt", &render::status(&stopped));
    golden("status-nothing-known.txt", &render::status(&State::new().status(1_000, 0)));
}
