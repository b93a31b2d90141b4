//! A fleet in one process: the arithmetic of the instances, a model of the store, and a simulated clock.
//! What do the instances decide, and how often do they call the store?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use outgate::policy::fleet::{SliceDecision, TokenRequest, TokenSlices};
use outgate::policy::limits::Quota;
use outgate::state::limits::rate::GcraState;

use crate::store_model::StoreModel;

/// The time of a call to the store: the request, and then the response (µs).
const DELAYS: [i64; 2] = [250, 250];
/// A key that was idle for this long leaves the memory of an instance (µs).
const IDLE: i64 = 2_000_000;
/// The length of an announcement (µs): so long does a fleet count an instance that it has lost.
const ANNOUNCEMENT: i64 = 5_000_000;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// One key of a limit in the memory of one instance.
#[derive(Default)]
struct Key {
    slices: TokenSlices,
    share: GcraState,
    used_at: i64,
}

/// The work of a fleet in a time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) deliveries: u64,
    pub(crate) admitted: u64,
    pub(crate) calls: u64,
}

pub(crate) struct Fleet {
    /// The time of all clocks (µs).
    pub(crate) now: i64,
    pub(crate) counts: Counts,
    /// The largest number of keys that the instances had in memory, and that the store had.
    pub(crate) most_keys: [usize; 2],
    quota_of: Box<dyn Fn(u32) -> Quota>,
    instances: Vec<Map<u32, Key>>,
    store: Map<u32, StoreModel>,
    /// The looks for idle tokens that are due: time, instance, key.
    looks: BinaryHeap<Reverse<(i64, u32, u32)>>,
    /// The partition: the first so many instances do not reach the store, since when, and whether it lasts.
    cut_off: u32,
    cut_at: i64,
    swept_at: i64,
}

impl Fleet {
    pub(crate) fn new(instances: usize, quota_of: impl Fn(u32) -> Quota + 'static) -> Self {
        Self {
            quota_of: Box::new(quota_of),
            now: 1_000_000,
            counts: Counts::default(),
            most_keys: [0; 2],
            instances: (0..instances).map(|_| Map::default()).collect(),
            store: Map::default(),
            looks: BinaryHeap::new(),
            cut_off: 0,
            cut_at: 0,
            swept_at: 1_000_000,
        }
    }

    /// Begins a partition: the first so many instances do not reach the store. None ends it.
    pub(crate) fn partition(&mut self, instances: u32) {
        (self.cut_off, self.cut_at) = (instances, self.now);
    }

    /// The number of live instances that this one knows of. Those behind a partition know all of them.
    fn live(&self, instance: u32) -> u32 {
        let all = u32::try_from(self.instances.len()).unwrap();
        let is_noticed = self.cut_off > 0 && self.now >= self.cut_at + ANNOUNCEMENT;
        if is_noticed && instance >= self.cut_off { all - self.cut_off } else { all }
    }

    /// Decides about a delivery of a tenant that comes to an instance, and returns whether it is admitted.
    pub(crate) fn deliver(&mut self, instance: u32, tenant: u32) -> bool {
        self.look_for_idle_tokens();
        let quota = (self.quota_of)(tenant);
        let (now, live, is_up) = (self.now, self.live(instance), instance >= self.cut_off);
        let key = self.instances[instance as usize].entry(tenant).or_default();
        key.used_at = now;
        let clock = nanos(now);
        let mut is_admitted = false;
        let mut waiting = 0;
        match key.slices.take(clock) {
            SliceDecision::Taken => is_admitted = true,
            SliceDecision::Exhausted(_) if is_up => {}
            _ if is_up => waiting = 1,
            _ => {
                let share = quota.share(live);
                key.share.set_limits(&share);
                is_admitted = key.share.try_take(clock).is_ok();
                if is_admitted {
                    key.slices.use_share(&share, clock);
                }
            }
        }
        if is_up && (waiting > 0 || key.slices.needs_refill(clock)) {
            let request = key.slices.request(quota, live, [waiting, 0], clock);
            is_admitted |= self.call(instance, tenant, &request, waiting) > 0;
        }
        self.counts.deliveries += 1;
        self.counts.admitted += u64::from(is_admitted);
        self.sweep();
        is_admitted
    }

    /// Makes a call to the store, and returns the tokens that deliveries have waited for.
    fn call(&mut self, instance: u32, tenant: u32, request: &TokenRequest, waiting: u32) -> u32 {
        let live = self.live(instance);
        let grant = self.store.entry(tenant).or_default().take(request, self.now + DELAYS[0]);
        self.counts.calls += 1;
        let answered = nanos(self.now + DELAYS[0] + DELAYS[1]);
        let key = self.instances[instance as usize].entry(tenant).or_default();
        let handed_out = grant.tokens.min(waiting);
        key.slices.granted(request, &grant, handed_out, live, [nanos(self.now), answered]);
        key.share.set_limits(&request.quota);
        key.share.set_arrival(grant.arrival_after(nanos(self.now)));
        if let Some(time) = key.slices.next_look(answered) {
            let time = self.now + DELAYS[0] + DELAYS[1] + i64::try_from(time.as_micros()).unwrap();
            self.looks.push(Reverse((time, instance, tenant)));
        }
        handed_out
    }

    /// Returns the tokens of keys that are idle, as the task of a key does.
    fn look_for_idle_tokens(&mut self) {
        while let Some(Reverse((time, instance, tenant))) = self.looks.peek().copied()
            && time <= self.now
        {
            self.looks.pop();
            let Some(key) = self.instances[instance as usize].get_mut(&tenant) else { continue };
            if instance < self.cut_off {
                continue;
            }
            let (quota, now) = ((self.quota_of)(tenant), nanos(self.now));
            let request = match key.slices.owes(now) {
                true => Some(key.slices.settlement(quota, now)),
                false => key.slices.return_if_idle(quota, now),
            };
            match request {
                Some(request) => {
                    self.call(instance, tenant, &request, 0);
                }
                None => {
                    if let Some(pause) = key.slices.next_look(nanos(self.now)) {
                        let pause = i64::try_from(pause.as_micros()).unwrap().max(1);
                        self.looks.push(Reverse((self.now + pause, instance, tenant)));
                    }
                }
            }
        }
    }

    /// Once a second, drops the keys that are idle: the store's when their burst is full, and those of the instances.
    fn sweep(&mut self) {
        if self.now < self.swept_at + 1_000_000 {
            return;
        }
        self.swept_at = self.now;
        let keys = [self.instances.iter().map(HashMap::len).sum(), self.store.len()];
        self.most_keys = [0, 1].map(|i| self.most_keys[i].max(keys[i]));
        let now = self.now;
        self.store.retain(|_, key| key.is_in_use(now));
        for keys in &mut self.instances {
            keys.retain(|_, key| key.used_at + IDLE > now);
        }
    }
}

fn nanos(micros: i64) -> u64 {
    u64::try_from(micros * 1000).unwrap()
}

/// Bytes of a key in the memory of an instance that the fleet adds to it.
pub(crate) const KEY_BYTES: usize = size_of::<TokenSlices>();
