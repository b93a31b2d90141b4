//! One computation whose result is shared by all callers that need it at the same time.
//! How do several callers share one fetch?
//!
//! A cache keeps the [`Flight`] beside its values, under its own lock. It decides what a failure means, and when the
//! next flight begins.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// A handle on a computation in flight. `P` is the progress that the leader shares with the followers.
pub struct Flight<T, P = ()>(Arc<FlightInner<T, P>>);

struct FlightInner<T, P> {
    outcome: watch::Sender<Outcome<T>>,
    followers: watch::Sender<usize>,
    joined: Notify,
    progress: P,
}

enum Outcome<T> {
    Pending,
    Finished(T),
    /// The leader was dropped without a result.
    Abandoned,
}

/// The duty to run the computation: each flight has one leader. Dropping it without a result wakes the followers.
pub struct Leader<T, P = ()>(Flight<T, P>);

/// A caller that waits for the result; the flight counts it until it is dropped.
pub struct Follower<T, P = ()> {
    flight: Flight<T, P>,
    outcome: watch::Receiver<Outcome<T>>,
}

impl<T, P> Clone for Flight<T, P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T, P> Flight<T, P> {
    /// Begins a flight. Its leader is usually a task of its own, so that a caller which leaves ends no fetch.
    pub fn begin(progress: P) -> Leader<T, P> {
        Leader(Self(Arc::new(FlightInner {
            outcome: watch::Sender::new(Outcome::Pending),
            followers: watch::Sender::new(0),
            joined: Notify::new(),
            progress,
        })))
    }

    pub fn join(&self) -> Follower<T, P> {
        self.0.followers.send_modify(|followers| *followers += 1);
        self.0.joined.notify_one();
        Follower { flight: self.clone(), outcome: self.0.outcome.subscribe() }
    }

    pub fn progress(&self) -> &P {
        &self.0.progress
    }

    pub fn is_pending(&self) -> bool {
        matches!(*self.0.outcome.borrow(), Outcome::Pending)
    }

    pub fn has_followers(&self) -> bool {
        *self.0.followers.borrow() > 0
    }

    /// Resolves once for the followers that have joined since the last call.
    pub async fn joined(&self) {
        self.0.joined.notified().await;
    }
}

impl<T, P> Leader<T, P> {
    pub fn flight(&self) -> &Flight<T, P> {
        &self.0
    }

    /// Returns whether this leads `flight`, and not another flight for the same key.
    pub fn leads(&self, flight: &Flight<T, P>) -> bool {
        Arc::ptr_eq(&self.0.0, &flight.0)
    }

    /// Gives the result to all followers.
    pub fn finish(&self, result: T) {
        self.0.0.outcome.send_replace(Outcome::Finished(result));
    }

    pub fn is_finished(&self) -> bool {
        matches!(*self.0.0.outcome.borrow(), Outcome::Finished(_))
    }

    /// Resolves when the flight has had no follower for as long as `linger`.
    pub async fn unwanted_for(&self, linger: Duration) {
        let mut followers = self.0.0.followers.subscribe();
        loop {
            // The flight owns the sender, so no wait fails.
            let _ = followers.wait_for(|followers| *followers == 0).await;
            if timeout(linger, followers.wait_for(|followers| *followers > 0)).await.is_err() {
                return;
            }
        }
    }
}

impl<T, P> Drop for Leader<T, P> {
    fn drop(&mut self) {
        if !self.is_finished() {
            self.0.0.outcome.send_replace(Outcome::Abandoned);
        }
    }
}

impl<T: Clone, P> Follower<T, P> {
    /// Waits for the result. `None`: the leader was dropped without one.
    pub async fn result(&mut self) -> Option<T> {
        let outcome = self.outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending)).await.ok()?;
        match &*outcome {
            Outcome::Finished(result) => Some(result.clone()),
            Outcome::Pending | Outcome::Abandoned => None,
        }
    }
}

impl<T, P> Follower<T, P> {
    pub fn progress(&self) -> &P {
        self.flight.progress()
    }
}

impl<T, P> Drop for Follower<T, P> {
    fn drop(&mut self) {
        self.flight.0.followers.send_modify(|followers| *followers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn single_flight_gives_one_result_to_all_followers() {
        let leader = Flight::<_, ()>::begin(());
        let [mut first, mut second] = [(); 2].map(|()| leader.flight().join());
        leader.finish(7);
        drop(leader);
        assert_eq!((first.result().await, second.result().await), (Some(7), Some(7)));
    }

    #[tokio::test]
    async fn single_flight_wakes_its_followers_when_the_leader_is_dropped() {
        let leader = Flight::<u8, ()>::begin(());
        let mut follower = leader.flight().join();
        let flight = leader.flight().clone();
        let (result, ()) = tokio::join!(follower.result(), async { drop(leader) });
        assert_eq!(result, None);
        assert_eq!(flight.join().result().await, None, "a late follower does not wait either");
    }

    #[tokio::test(start_paused = true)]
    async fn single_flight_is_unwanted_once_no_follower_has_joined_for_the_linger() {
        let (leader, linger) = (Flight::<u8, ()>::begin(()), Duration::from_secs(10));
        let (begun, flight) = (tokio::time::Instant::now(), leader.flight().clone());
        let follower = flight.join();
        let joins_again = async {
            drop(follower);
            tokio::time::sleep(linger / 2).await;
            let _follower = flight.join();
            tokio::time::sleep(linger).await;
        };
        tokio::join!(leader.unwanted_for(linger), joins_again);
        assert_eq!(begun.elapsed(), linger / 2 + linger + linger);
        assert!(!flight.has_followers());
    }

    #[test]
    fn single_flight_leader_knows_its_own_flight() {
        let (first, second) = (Flight::<u8, ()>::begin(()), Flight::<u8, ()>::begin(()));
        assert!(first.leads(first.flight()) && !first.leads(second.flight()));
    }
}
