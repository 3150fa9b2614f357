//! The store on files that are new, old, newer, damaged, cut, unwritable or in the way.

use super::*;
use formats::hex::Digest;
use std::fs;
use std::path::Path;

fn observed() -> Observed {
    Observed { slot: Slot::A, roothash: Digest([1; 32]), version: "1.0".into(), kernel: "6.12".into() }
}

fn desired() -> Desired {
    Desired { version: "1.0".into(), roothash: Digest([1; 32]), source: "factory".into() }
}

fn event(n: u64) -> Record {
    Record::Event(EventLine {
        boot_id: "b".into(),
        uptime_ms: n,
        code: "test".into(),
        text: format!("event {n}"),
    })
}

fn filled(folder: &Path) {
    let (store, condition) = open(folder);
    assert_eq!(condition, Condition::Ready);
    let mut store = store.unwrap();
    let boot = Record::Boot { boot_id: "b".into(), observed: Some(observed()), trial: false };
    store.record(&[boot, Record::Observed(observed()), Record::Desired(desired())]).unwrap();
    for n in 0..400 {
        store.record(&[event(n)]).unwrap();
    }
}

#[test]
fn what_is_recorded_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let (store, condition) = open(folder.path());
    let loaded = store.unwrap().load().unwrap();
    assert_eq!(condition, Condition::Ready);
    assert_eq!((loaded.desired, loaded.observed, loaded.boots), (Some(desired()), Some(observed()), 1));
    assert_eq!((loaded.events.len(), loaded.events[0].text.as_str()), (EVENTS_READ as usize, "event 399"));
}

#[test]
fn events_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).0.unwrap();
    let events: Vec<Record> = (0..u64::from(EVENTS_KEPT) + 30).map(event).collect();
    store.record(&events).unwrap();
    let kept: u32 = store.connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, EVENTS_KEPT);
}

fn tables(db: &Connection) -> Vec<String> {
    let mut query = db.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_old_schema_becomes_the_newest() {
    let mut fresh = Connection::open_in_memory().unwrap();
    schema::migrate(&mut fresh).unwrap();
    for old in 0..=schema::MIGRATIONS.len() {
        let mut db = Connection::open_in_memory().unwrap();
        for migration in &schema::MIGRATIONS[..old] {
            db.execute_batch(migration).unwrap();
        }
        db.pragma_update(None, "user_version", old as u32).unwrap();
        schema::migrate(&mut db).unwrap();
        assert_eq!(schema::version(&db).unwrap(), schema::newest());
        assert_eq!(tables(&db), tables(&fresh), "from version {old}");
    }
}

#[test]
fn every_table_is_salvaged_with_all_its_columns() {
    let mut db = Connection::open_in_memory().unwrap();
    schema::migrate(&mut db).unwrap();
    let mut names: Vec<String> = schema::TABLES.iter().map(|(table, _)| (*table).to_owned()).collect();
    names.sort();
    let mut query = db
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
             AND name <> 'outbox_epoch' ORDER BY name",
        )
        .unwrap();
    let found: Vec<String> =
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(found, names);
    for (table, columns) in schema::TABLES {
        let mut query = db.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
        let found: Vec<String> =
            query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(found.join(", "), columns);
    }
}

#[test]
fn a_newer_schema_is_read_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let path = folder.path().join(FILE);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", schema::newest() + 3).unwrap();
    let before = fs::read(&path).unwrap();
    let (store, condition) = open(folder.path());
    assert_eq!(condition, Condition::Newer { found: schema::newest() + 3, known: schema::newest() });
    let mut store = store.unwrap();
    assert_eq!(store.load().unwrap().desired, Some(desired()));
    assert_eq!(Fault::of(&store.record(&[event(1)]).unwrap_err()), Fault::ReadOnly);
    drop(store);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_page_costs_itself_and_the_file_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let path = folder.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    // In the table of events and in the outbox.
    while let Some(at) = bytes.windows(9).position(|window| window == b"event 200") {
        let page = at / 4096 * 4096;
        bytes[page..page + 4096].fill(0xa5);
    }
    fs::write(&path, &bytes).unwrap();
    let (store, condition) = open(folder.path());
    let Condition::Salvaged { aside, rows, .. } = condition else { panic!("{condition:?}") };
    assert_eq!(aside, folder.path().join("agent.db.corrupt-1"));
    assert_eq!(fs::read(&aside).unwrap(), bytes, "not a byte of the damaged file is lost");
    assert!((250..658).contains(&rows), "{rows}");
    let mut store = store.unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.desired, loaded.events[0].text.as_str()), (Some(desired()), "event 399"));
    store.record(&[event(1000)]).unwrap();
}

#[test]
fn every_damaged_page_leads_to_a_working_store() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let good = fs::read(folder.path().join(FILE)).unwrap();
    for page in 0..good.len() / 4096 {
        let folder = tempfile::tempdir().unwrap();
        let mut bad = good.clone();
        bad[page * 4096..(page + 1) * 4096].fill(0);
        fs::write(folder.path().join(FILE), &bad).unwrap();
        let (store, condition) = open(folder.path());
        assert!(matches!(condition, Condition::Salvaged { .. }), "page {page}: {condition:?}");
        store.unwrap().record(&[event(1)]).unwrap();
    }
}

#[test]
fn text_in_place_of_a_database_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), "not a database at all, but long enough to be looked at").unwrap();
    fs::write(folder.path().join("agent.db.corrupt-1"), "from last time").unwrap();
    let (store, condition) = open(folder.path());
    let Condition::Salvaged { aside, rows: 0, .. } = condition else { panic!("{condition:?}") };
    assert_eq!(aside, folder.path().join("agent.db.corrupt-2"));
    assert_eq!(fs::read(folder.path().join("agent.db.corrupt-1")).unwrap(), b"from last time");
    assert!(store.is_some());
}

#[test]
fn a_salvage_cut_before_or_after_the_rename_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let (path, salvaged) = (folder.path().join(FILE), folder.path().join("agent.db.salvaged"));
    fs::rename(&path, &salvaged).unwrap();
    let (store, condition) = open(folder.path());
    assert_eq!(condition, Condition::Ready);
    assert_eq!(store.unwrap().load().unwrap().desired, Some(desired()));
    fs::write(&salvaged, "half filled").unwrap();
    assert_eq!(open(folder.path()).1, Condition::Ready);
    assert!(!salvaged.exists());
}

#[test]
fn without_a_usable_folder_the_agent_has_no_store_and_knows_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (store, condition) = open(&file.join("store"));
    assert!(store.is_none());
    let Condition::Unavailable { why } = condition else { panic!("{condition:?}") };
    assert!(why.starts_with("make folder "), "{why}");
}

#[test]
fn a_folder_that_cannot_be_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let store = open_for_reading(folder.path()).unwrap();
    assert_eq!(store.load().unwrap().desired, Some(desired()));
    assert!(immutable_for_test(folder.path()).load().unwrap().desired.is_some());
}

fn immutable_for_test(folder: &Path) -> Store {
    open::immutable(&folder.join(FILE)).unwrap()
}

#[test]
fn reports_wait_for_their_receipts_and_their_numbers_are_never_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let device = [0xee; 16];
    let standing = |version: &str| {
        Record::Standing(Box::new(Standing { version: version.into(), ..Standing::default() }))
    };
    let event = || {
        let (boot_id, code, text) = ("b".into(), "update-fetched".into(), "x".repeat(500));
        Record::Event(EventLine { boot_id, uptime_ms: 9000, code, text })
    };
    let (store, _) = open(folder.path());
    let mut store = store.unwrap();
    store.record(&[standing("1"), event(), standing("2")]).unwrap();
    let first = store.outbox(device, 10).unwrap();
    let bodies: Vec<Report> = first.iter().map(|(_, bytes)| Report::parse(bytes).unwrap()).collect();
    assert!(matches!(&bodies[0].body, ReportBody::Event { uptime_s: 9, .. }));
    assert!(matches!(&bodies[1].body, ReportBody::Status(standing) if standing.version == "2"));
    assert!(bodies.iter().all(|report| report.device == device) && bodies.len() == 2);
    let ids: Vec<ReportId> = first.iter().map(|(id, _)| *id).collect();
    let foreign = ReportId { epoch: ids[0].epoch ^ 1, ..ids[0] };
    store.record(&[Record::Received(vec![foreign])]).unwrap();
    assert_eq!(store.outbox(device, 10).unwrap().len(), 2);
    store.record(&[Record::Received(ids.clone()), event()]).unwrap();
    drop(store);
    let (store, _) = open(folder.path());
    let mut store = store.unwrap();
    let later = store.outbox(device, 10).unwrap();
    assert_eq!(later.len(), 1);
    assert!(later[0].0.epoch == ids[0].epoch && later[0].0.number > ids[1].number);
    for _ in 0..400 {
        store.record(&[event()]).unwrap();
    }
    assert_eq!(store.outbox(device, 1000).unwrap().len(), OUTBOX_KEPT as usize);
}
