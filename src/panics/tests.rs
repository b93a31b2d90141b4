//! Tests of the wrapper of futures and of the locks.
//! Where is a panic contained?

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Waker;

use super::*;

#[tokio::test]
async fn contained_future_resolves_to_its_output_or_to_its_panic() {
    assert_eq!(contain(async { 7 }).await, Ok(7));
    let held = Arc::new(());
    let panicking = contain({
        let held = Arc::clone(&held);
        async move {
            tokio::task::yield_now().await;
            assert_eq!(Arc::strong_count(&held), 1, "always fails");
        }
    });
    let mut panicking = Box::pin(panicking);
    assert!(panicking.as_mut().await.is_err());
    assert_eq!(Arc::strong_count(&held), 1, "the future was dropped with its panic");
}

#[tokio::test]
async fn panic_of_a_spawned_task_ends_only_the_task() {
    assert!(spawn(async { panic!("a mistake") }).await.expect("the task ended in order").is_err());
}

#[test]
fn only_the_polls_and_the_drop_of_a_contained_future_are_contained() {
    struct AssertContained;
    impl Drop for AssertContained {
        fn drop(&mut self) {
            assert!(IS_CONTAINED.get(), "the drop of a contained future");
            panic!("a mistake in a drop");
        }
    }
    let mut future = Box::pin(contain(async {
        let _held = AssertContained;
        poll_fn(|_| {
            assert!(IS_CONTAINED.get());
            Poll::Ready(())
        })
        .await;
        pending::<()>().await;
    }));
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(!IS_CONTAINED.get());
    drop(future);
    assert!(!IS_CONTAINED.get());
}

#[test]
fn containment_is_restored_after_a_nested_panic() {
    let nested = catch(|| {
        assert!(catch(|| panic!("a mistake")).is_err());
        IS_CONTAINED.get()
    });
    assert_eq!(nested, Ok(true));
    assert!(!IS_CONTAINED.get());
}

#[test]
fn critical_section_lasts_as_long_as_a_lock_for_writing() {
    let (mutex, rwlock) = (Mutex::new(1), RwLock::default());
    let guard = mutex.lock();
    assert!(CriticalSection::is_entered());
    let written = rwlock.write();
    drop(guard);
    assert!(CriticalSection::is_entered());
    drop(written);
    assert!(!CriticalSection::is_entered());
    let read: &i32 = &rwlock.read();
    assert!(*read == 0 && !CriticalSection::is_entered(), "a reader changes nothing");
}

#[test]
fn futures_of_a_group_are_unwound_if_the_owner_of_the_group_panics() {
    struct Observed<'a>(&'a Cell<Option<bool>>);
    impl Drop for Observed<'_> {
        fn drop(&mut self) {
            self.0.set(Some(std::thread::panicking()));
        }
    }
    for owner_panics in [false, true] {
        let was_unwound = Cell::new(None);
        let group = Group::default();
        let mut future = Box::pin(group.contain(async {
            let _observed = Observed(&was_unwound);
            pending::<()>().await;
        }));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let owner = catch(move || {
            let _group = group;
            PLACE.set(Some("here".to_owned())); // as the hook does
            assert!(!owner_panics, "a mistake");
        });
        PLACE.set(None); // the future may be dropped by another thread
        drop(future);
        assert_eq!(was_unwound.get(), Some(owner_panics));
        assert_eq!(owner.is_err().then(Panicked::last), owner.err(), "the panic is the owner's");
    }
}
