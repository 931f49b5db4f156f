//! Tests that need a ring: reads that stay in the kernel until they are released, and the end of its
//! thread.

use std::future::Future;
use std::io::Write;
use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::io::operation::{SlotGuard, Work};
use crate::io::registered_pool::PooledBuffer;
use crate::io::{Engine, EngineConfig, EngineKind};

type Answer = oneshot::Receiver<Result<PooledBuffer, Errno>>;

/// Returns a file whose read (of 8 bytes) stays in the kernel until 1 is written to it.
fn gate() -> Arc<EventFd> {
    Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap())
}

fn small_file() -> Arc<std::fs::File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"small").unwrap();
    Arc::new(file)
}

fn start(pool_bytes: usize) -> Option<Engine> {
    if std::env::var_os("WORMHOLE_TEST_NO_URING").is_some() {
        return None;
    }
    let config = EngineConfig {
        kind: EngineKind::Uring,
        pool_bytes,
        reads_resident: false,
        ..EngineConfig::default()
    };
    Some(Engine::start(&config).expect("io_uring is tested here: allow it, or set WORMHOLE_TEST_NO_URING=1"))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let deadline = std::time::Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(deadline, test).await.expect("the ring hangs") });
}

#[test]
fn many_reads_are_in_the_kernel_at_once() {
    let Some(engine) = start(64 << 20) else { return };
    run(async move {
        let mut waiting = Vec::new();
        for _ in 0..200 {
            let (engine, gate) = (engine.clone(), gate());
            let file = Arc::clone(&gate);
            waiting.push((gate, tokio::spawn(async move { engine.read(file, 0, 8).await })));
        }
        while engine.stats().in_flight < 200 {
            tokio::task::yield_now().await;
        }
        // Each is released alone, the youngest first. It could not end if the kernel did not have all of
        // them.
        while let Some((gate, task)) = waiting.pop() {
            gate.write(1).unwrap();
            assert_eq!(task.await.unwrap().unwrap()[..], 1_u64.to_ne_bytes());
        }
        assert_eq!(engine.stats().in_flight_max, 200);
    });
}

#[test]
fn a_buffer_stays_with_the_kernel_when_its_future_is_dropped() {
    let Some(engine) = start(4 << 20) else { return };
    run(async move {
        let gates: Vec<_> = (0..8).map(|_| gate()).collect();
        let tasks: Vec<_> = gates
            .iter()
            .map(|gate| {
                let (engine, gate) = (engine.clone(), Arc::clone(gate));
                tokio::spawn(async move { engine.read(gate, 0, 8).await.map(drop) })
            })
            .collect();
        while engine.stats().in_flight < 8 {
            tokio::task::yield_now().await;
        }
        // The queue keeps the order, so when this one is answered the others are in the kernel.
        assert_eq!(engine.read(small_file(), 0, 100).await.unwrap(), "small");
        for task in tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        let stats = engine.stats();
        assert_eq!((stats.in_flight, stats.pool_free), (8, stats.pool_buffers - 8));
        for gate in &gates {
            gate.write(1).unwrap();
        }
        while engine.stats().in_flight > 0 || engine.stats().pool_free < stats.pool_buffers {
            tokio::task::yield_now().await;
        }
        assert_eq!(engine.stats().cancelled, 0);
    });
}

/// Returns a read as the engine makes it, without the engine.
fn read_of(
    pool: &Arc<RegisteredPool>,
    counters: &Arc<Counters>,
    file: Arc<dyn AsFd + Send + Sync>,
    len: usize,
) -> (Operation, Answer) {
    let (reply, answer) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let buffer = runtime.block_on(pool.acquire(len));
    let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let guard = SlotGuard::new(slot, Arc::clone(counters));
    (Operation::new(file, 0, Work::Read { buffer, want: len, reply }, guard), answer)
}

#[test]
fn the_thread_ends_after_the_operations_in_flight() {
    if start(4 << 20).is_none() {
        return;
    }
    let pool = RegisteredPool::new(4 << 20, 1 << 20).unwrap();
    let (uring, _) = Uring::start(1, 4, &pool, &Arc::default()).unwrap();
    let queue = Arc::clone(&uring.rings[0].queue);
    let gate = gate();
    let (blocked, answer) = read_of(&pool, &Arc::default(), Arc::clone(&gate) as _, 8);
    uring.push(blocked);
    let (quick, quick_answer) = read_of(&pool, &Arc::default(), small_file(), 100);
    uring.push(quick);
    assert_eq!(quick_answer.blocking_recv().unwrap().unwrap().as_ref(), b"small");

    queue.close();
    let (late, late_answer) = read_of(&pool, &Arc::default(), small_file(), 100);
    queue.push(late);
    assert!(late_answer.blocking_recv().is_err(), "a closed ring took work");
    assert!(!uring.rings[0].thread.is_finished(), "the thread left a read behind");
    gate.write(1).unwrap();
    assert_eq!(answer.blocking_recv().unwrap().unwrap().as_ref(), 1_u64.to_ne_bytes());
    uring.join();
    assert_eq!(Arc::strong_count(&pool), 1, "a thread is gone and something still holds the pool");
}

#[test]
fn an_idle_thread_ends_when_its_ring_is_dropped() {
    if start(4 << 20).is_none() {
        return;
    }
    let pool = RegisteredPool::new(4 << 20, 1 << 20).unwrap();
    for rings in 1..4 {
        let (uring, note) = Uring::start(rings, 1, &pool, &Arc::default()).unwrap();
        assert_eq!(note, None);
        uring.join();
        assert_eq!(Arc::strong_count(&pool), 1);
    }
}

#[test]
fn memory_that_the_kernel_may_still_use_is_never_used_again() {
    if start(4 << 20).is_none() {
        return;
    }
    let pool = RegisteredPool::new(4 << 20, 1 << 20).unwrap();
    let queue = Arc::new(Queue::new().unwrap());
    let gate = gate();
    let (blocked, answer) = read_of(&pool, &Arc::default(), Arc::clone(&gate) as _, 8);
    let (queued, queued_answer) = read_of(&pool, &Arc::default(), small_file(), 8);
    queue.push(blocked);
    let Ok((mut driver, None)) = Driver::new(4, Arc::clone(&queue), Arc::clone(&pool), Arc::default()) else {
        panic!("no ring with registered buffers")
    };
    driver.submit_all();
    queue.push(queued);
    // As after an error of `io_uring_enter`, or a panic.
    drop(driver);
    assert!(answer.blocking_recv().is_err());
    assert!(queued_answer.blocking_recv().is_err());
    assert_eq!(pool.free(), pool.buffers() - 1, "only the buffer that is in the ring is lost");
    gate.write(1).unwrap();
}

#[test]
fn an_abandoned_operation_is_not_started() {
    if start(4 << 20).is_none() {
        return;
    }
    let pool = RegisteredPool::new(4 << 20, 1 << 20).unwrap();
    let counters = Arc::default();
    let (uring, _) = Uring::start(1, 1, &pool, &counters).unwrap();
    let gate = gate();
    let (blocked, answer) = read_of(&pool, &counters, Arc::clone(&gate) as _, 8);
    let (waiting, waiting_answer) = read_of(&pool, &counters, small_file(), 8);
    let (last, last_answer) = read_of(&pool, &counters, small_file(), 5);
    for operation in [blocked, waiting, last] {
        uring.push(operation);
    }
    // The only slot is taken, so no operation behind the gate can have begun.
    drop(waiting_answer);
    gate.write(1).unwrap();
    assert_eq!(answer.blocking_recv().unwrap().unwrap().as_ref().len(), 8);
    assert_eq!(last_answer.blocking_recv().unwrap().unwrap().as_ref(), b"small");
    let stats = counters.snapshot(&pool);
    assert_eq!((stats.cancelled, stats.reads, stats.fixed_reads), (1, 2, 2));
    assert_eq!(stats.pool_free, stats.pool_buffers);
    uring.join();
}
