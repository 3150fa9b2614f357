//! The page of the protocol names the test that answers each trap; this one sees that the names exist, and that none is forgotten.

const PAGE: &str = include_str!("../../../../docs/ha-protocol.md");
const SOURCES: [&str; 13] = [
    include_str!("traps.rs"),
    include_str!("traps_more.rs"),
    include_str!("../act/filter.rs"),
    include_str!("../act/startup.rs"),
    include_str!("../act/watch.rs"),
    include_str!("../act/witness.rs"),
    include_str!("../act/saved.rs"),
    include_str!("../../../tests/ha_site/main.rs"),
    include_str!("../../../tests/ha_site/traps.rs"),
    include_str!("../../../tests/ha_site/faults.rs"),
    include_str!("../../../tests/ha_site/links.rs"),
    include_str!("../../../tests/ha_site/operators.rs"),
    include_str!("../../../tests/ha_site/refused.rs"),
];

/// Number of the trap and names of its tests, from the table's rows.
fn rows() -> Vec<(u32, Vec<&'static str>)> {
    let table = PAGE.lines().skip_while(|line| !line.starts_with("| trap | tests |")).skip(2);
    let row = |line: &'static str| {
        let mut cells = line.trim_matches('|').split('|');
        let number = cells.next().unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let tests = cells.next().unwrap().split('`').skip(1).step_by(2).collect();
        (number, tests)
    };
    table.take_while(|line| line.starts_with('|')).map(row).collect()
}

#[test]
fn every_trap_has_a_test_and_every_named_test_exists() {
    let rows = rows();
    assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
    for (number, tests) in &rows {
        assert!(!tests.is_empty(), "trap {number} has no test");
        for test in tests {
            let head = format!("#[test]\nfn {test}(");
            let inner = format!("#[test]\n    fn {test}(");
            let found = SOURCES.iter().any(|source| source.contains(&head) || source.contains(&inner));
            assert!(found, "trap {number}: there is no test {test}");
        }
    }
}

#[test]
fn no_test_of_a_trap_is_missing_from_the_page() {
    let rows = rows();
    for source in SOURCES {
        for line in source.lines().filter_map(|line| line.trim_start().strip_prefix("fn trap_")) {
            let name = format!("trap_{}", line.split('(').next().unwrap());
            let number: u32 = name[5..7].parse().unwrap();
            let row = rows.iter().find(|(trap, _)| *trap == number).unwrap();
            assert!(row.1.contains(&name.as_str()), "{name} is not in the row of trap {number}");
        }
    }
}
