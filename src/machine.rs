//! What this machine has: cores, the cache that they share, and free memory; and what this process takes of that.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

/// Where Linux says how much memory is left, and how much this process and those it was started with may have.
const MEMORY: [&str; 2] = ["/proc/meminfo", "/sys/fs/cgroup/memory.max"];
/// Where Linux says how much memory this process has, and has had at most; and where that begins anew.
const STATUS: &str = "/proc/self/status";
const RESET: (&str, &str) = ("/proc/self/clear_refs", "5");
/// Where Linux describes the caches of a core; of the first, since all are taken to be alike.
const CACHES: &str = "/sys/devices/system/cpu/cpu0/cache";
/// A last-level cache where nothing describes it: what a desktop processor of the last ten years has at least.
const UNKNOWN: Cache = Cache { bytes: 8 << 20, cores: u32::MAX };

/// Cores that this process may use.
#[must_use]
pub fn cores() -> u32 {
    available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// Bytes of memory that may still be asked for, as far as the system says; otherwise all there could be.
#[must_use]
pub fn free_memory() -> u64 {
    let [available, most] = MEMORY.map(|file| fs::read_to_string(file).ok());
    free(available.as_deref(), most.as_deref())
}

fn free(available: Option<&str>, most: Option<&str>) -> u64 {
    let available = available.and_then(|text| bytes_of("MemAvailable:", text));
    let most = most.and_then(|text| text.trim().parse().ok());
    available.into_iter().chain(most).min().unwrap_or(u64::MAX)
}

/// What a line of `text` that begins with `key` says, in bytes.
fn bytes_of(key: &str, text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// What `run` gives, and by how many bytes the memory of this process grew at most while it ran; `None` where the system
/// does not say. It is never told too low; what others take meanwhile is in it too.
pub fn growth<T>(run: impl FnOnce() -> T) -> (T, Option<u64>) {
    let says = |key: &str| bytes_of(key, &fs::read_to_string(STATUS).ok()?);
    let (begun, _measuring) = Measuring::begin();
    let before = says("VmRSS:");
    let given = run();
    let grown = || Some(says("VmHWM:")?.saturating_sub(before?));
    (given, if begun { grown() } else { None })
}

/// Calls of [`growth`] that run, and whether the peak began anew with the first: another must not make it begin again.
static MEASURED: Mutex<(u32, bool)> = Mutex::new((0, false));

/// One of them.
struct Measuring;

impl Measuring {
    fn begin() -> (bool, Self) {
        let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
        let (running, begun) = &mut *measured;
        if *running == 0 {
            *begun = fs::write(RESET.0, RESET.1).is_ok();
        }
        *running += 1;
        (*begun, Self)
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        MEASURED.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
    }
}

/// A cache that lies before memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its size.
    pub bytes: u64,
    /// Cores that share it, at least 1.
    pub cores: u32,
}

/// The last cache before memory; 8 MiB shared by all cores where the system does not say.
#[must_use]
pub fn last_level_cache() -> Cache {
    last_level(Path::new(CACHES)).unwrap_or(UNKNOWN)
}

/// The cache of the highest level that `caches` describes, one in each folder.
fn last_level(caches: &Path) -> Option<Cache> {
    let found = fs::read_dir(caches).ok()?.flatten().filter_map(|entry| {
        let read = |what: &str| fs::read_to_string(entry.path().join(what)).ok();
        let level: u32 = read("level")?.trim().parse().ok()?;
        let bytes = read("size")?.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1 << 10)?;
        Some((level, Cache { bytes, cores: count(read("shared_cpu_list")?.trim())? }))
    });
    found.max_by_key(|(level, _)| *level).map(|(_, cache)| cache)
}

/// How many a list such as `0-3,8` names.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(caches: &Path, name: &str, files: &[(&str, &str)]) {
        fs::create_dir(caches.join(name)).unwrap();
        files.iter().for_each(|(file, text)| fs::write(caches.join(name).join(file), text).unwrap());
    }

    #[test]
    fn the_last_cache_is_the_one_of_the_highest_level_that_is_described_in_full() {
        let caches = tempfile::tempdir().unwrap();
        let of = |level, size, list| [("level", level), ("size", size), ("shared_cpu_list", list)];
        assert_eq!(last_level(caches.path()), None);
        describe(caches.path(), "index0", &of("1\n", "32K\n", "0,64\n"));
        describe(caches.path(), "index3", &of("3\n", "32768K\n", "0-7,64-71\n"));
        describe(caches.path(), "index2", &of("2\n", "1024K\n", "0,64\n"));
        describe(caches.path(), "index4", &of("4\n", "much\n", "0-127\n"));
        describe(caches.path(), "power", &[]);
        assert_eq!(last_level(caches.path()), Some(Cache { bytes: 32 << 20, cores: 16 }));
    }

    #[test]
    fn memory_is_what_is_available_and_allowed() {
        let available = "MemTotal: 9 kB\nMemAvailable:    2048 kB\n";
        for (most, free_bytes) in [(None, 2 << 20), (Some("max\n"), 2 << 20), (Some("1024\n"), 1024)] {
            assert_eq!(free(Some(available), most), free_bytes);
        }
        assert_eq!([free(None, Some("5")), free(Some("MemAvailable: ?"), None)], [5, u64::MAX]);
    }

    #[test]
    fn memory_that_was_taken_and_let_go_counts_as_growth() {
        const BYTES: usize = 256 << 20;
        let (written, grown) =
            growth(|| std::hint::black_box(vec![1u8; BYTES]).iter().map(|&byte| usize::from(byte)).sum::<usize>());
        assert_eq!(written, BYTES);
        // Other tests may give some back meanwhile.
        assert!(grown.is_none_or(|grown| grown > BYTES as u64 / 2), "{grown:?}");
    }

    #[test]
    fn a_list_of_cores_that_makes_no_sense_is_none() {
        assert_eq!(["0", "0-1", "0-3,8"].map(count), [Some(1), Some(2), Some(5)]);
        assert_eq!(["", "3-1", "0-4294967295", "a"].map(count), [None; 4]);
    }
}
