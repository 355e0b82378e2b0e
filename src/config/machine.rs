//! What the machine, or the cgroup on it, has to give.

use std::path::Path;

/// Where nothing can be read: small enough for anything.
const FALLBACK_BYTES: u64 = 1 << 30;

/// The name of this host; `localhost` where it has none that can be written everywhere.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if is_plain { name } else { "localhost".into() }
}

/// Cores that this process may use (affinity and cgroup quota counted).
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of memory: the cgroup's limit, or the physical memory where there is none.
pub fn memory() -> u64 {
    let physical = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_total(&text)).unwrap_or(FALLBACK_BYTES);
    cgroup_limit().map_or(physical, |limit| limit.min(physical))
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The tightest limit on the way from our cgroup to the root: version 2, else version 1.
fn cgroup_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path =
        |marker: &str| groups.lines().find_map(|line| line.split_once(marker).map(|(_, path)| path.trim_start_matches('/').to_owned()));
    let unified = path("0::").and_then(|path| tightest(Path::new("/sys/fs/cgroup"), &path, "memory.max"));
    unified.or_else(|| tightest(Path::new("/sys/fs/cgroup/memory"), &path(":memory:")?, "memory.limit_in_bytes"))
}

fn tightest(root: &Path, group: &str, file: &str) -> Option<u64> {
    let group = root.join(group);
    let up = group.ancestors().take_while(|path| path.starts_with(root));
    up.filter_map(|path| std::fs::read_to_string(path.join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_cores() {
        assert!(memory() > 16 << 20);
        assert!(cores() >= 1);
        assert_eq!(meminfo_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_total("nothing"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(tightest(root.path(), "a/b", "memory.max"), Some(1000));
        assert_eq!(tightest(root.path(), "none", "memory.max"), None);
    }
}
