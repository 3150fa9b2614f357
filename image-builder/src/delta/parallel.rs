//! Work on numbered jobs with a few threads; results come in the order of the numbers, whoever did them.

use anyhow::{Result, anyhow};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work` for 0 to `count` on `threads` threads and returns the results in order, or the first error by number.
///
/// # Errors
/// The first error of `work`.
pub fn run<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<T>>>> = Mutex::new((0..count).map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let result = work(number);
                    if let Ok(mut done) = done.lock() {
                        done[number] = Some(result);
                    }
                }
            });
        }
    });
    let done = done.into_inner().map_err(|_poisoned| anyhow!("run jobs: a thread panicked"))?;
    done.into_iter().map(|result| result.unwrap_or_else(|| Err(anyhow!("run jobs: one was lost")))).collect()
}
