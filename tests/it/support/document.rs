//! What `docs/http1.md` promises, row by row.

/// Status and reason of each row of a section's table, the reasons of a row apart: `| deviation | answer | reason |`.
pub fn reasons_of(section: &str) -> Vec<(u16, String)> {
    let document = include_str!("../../../docs/http1.md");
    let (_, after) = document.split_once(&format!("\n## {section}\n")).expect("such a section");
    let rows = after.split("\n## ").next().unwrap_or_default().lines().filter(|line| line.starts_with('|')).skip(2);
    let read = |row: &str| {
        let cells: Vec<&str> = row.trim_matches('|').rsplitn(3, " | ").map(str::trim).collect();
        let [reasons, status, _] = cells[..] else { panic!("three cells: {row}") };
        let reasons: Vec<String> = reasons.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!reasons.is_empty(), "a reason: {row}");
        let status: u16 = status.parse().expect("a status");
        reasons.into_iter().map(move |reason| (status, reason)).collect::<Vec<_>>()
    };
    rows.flat_map(read).collect()
}
