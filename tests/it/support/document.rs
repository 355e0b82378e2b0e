//! What `docs/http1.md` promises, row by row.

/// The cells of each row of a section's table.
pub fn rows_of(section: &str) -> Vec<Vec<&'static str>> {
    let document = include_str!("../../../docs/http1.md");
    let (_, after) = document.split_once(&format!("\n## {section}\n")).expect("such a section");
    let rows = after.split("\n## ").next().unwrap_or_default().lines().filter_map(|line| line.strip_prefix('|')).skip(2);
    rows.map(|row| row.trim_end_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Status and reason of each row of a section's table, the reasons of a row apart: `| deviation | answer | reason |`.
pub fn reasons_of(section: &str) -> Vec<(u16, String)> {
    let read = |cells: Vec<&str>| {
        let [_, status, reasons] = cells[..] else { panic!("three cells: {cells:?}") };
        let reasons: Vec<String> = reasons.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!reasons.is_empty(), "a reason: {cells:?}");
        let status: u16 = status.parse().expect("a status");
        reasons.into_iter().map(move |reason| (status, reason)).collect::<Vec<_>>()
    };
    rows_of(section).into_iter().flat_map(read).collect()
}
