//! The scenario that a seed draws: the configuration, the clients, the faults, and what the operator does meanwhile.
//! What happens in this seed?

use std::time::Duration;

use super::client::{ClientPlan, RequestPlan};
use super::dns::{DOMAIN, ZONES, Zone};
use super::random::Random;
use super::world::Rules;
use crate::config::{
    self, Circuit, Config, InterimPolicy, Limit, LimitDimension, Located, PathForm, PlaintextPolicy, PoolRange, Rate,
    Secret, SelectionPolicy, SigningKey, Timeouts,
};
use crate::names::{KeyId, LimitName, PoolName, SignerName};
use crate::policy::fixture::{self, at};

/// The longest of the timeouts that a seed draws.
pub(super) const TOTAL_MAX: Duration = Duration::from_secs(20);

pub(super) struct Scenario {
    pub(super) config: Config,
    pub(super) rules: Rules,
    pub(super) clients: Vec<ClientPlan>,
    pub(super) acts: Vec<(Duration, Act)>,
    pub(super) random: Random,
}

/// An act of the operator or of a periodic task.
pub(super) enum Act {
    Reload(Box<Config>),
    Drain,
    Undrain,
    SweepConnections,
    SweepLimits,
    /// The listener of the clients closes.
    CloseListener,
}

impl Scenario {
    /// Draws the scenario of a seed.
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let targets = random.between(1, 4);
        let trouble = random.one_of(&[0, 60, 150, 300, 500]);
        let rules = draw_rules(targets, trouble, &mut random);
        let config = draw_config(&mut random);
        let mut id = 0;
        let clients = (0..random.between(1, 6)).map(|_| draw_client(&mut id, targets, trouble, &mut random)).collect();
        let acts = (0..random.below(4)).map(|_| draw_act(&config, &mut random)).collect();
        Self { config, rules, clients, acts, random }
    }

    /// Draws a scenario with few requests, in which every operation is pending at first.
    pub(super) fn draw_small(seed: u64) -> Self {
        let mut scenario = Self::draw(seed);
        scenario.clients.truncate(2);
        for client in &mut scenario.clients {
            client.starts = Duration::ZERO; // the clients compete for places
            client.requests.truncate(2);
            client.cancel_at = None;
        }
        let rules = &mut scenario.rules;
        (rules.pending, rules.short, rules.reset, rules.always_pending) = (0, 0, 0, true);
        rules.window = rules.window.max(4096);
        scenario
    }
}

fn draw_rules(targets: usize, trouble: usize, random: &mut Random) -> Rules {
    let zone = |random: &mut Random| if random.permille(trouble) { random.one_of(ZONES) } else { Zone::Public };
    Rules {
        pending: random.one_of(&[0, 50, 300]),
        short: random.one_of(&[0, 50, 300]),
        reset: random.one_of(&[0, 0, 3, 30]),
        reset_at: None,
        always_pending: random.permille(150),
        window: random.one_of(&[16, 200, 4096, 65_536]),
        trouble,
        zones: (0..targets).map(|_| zone(random)).collect(),
    }
}

fn draw_client(id: &mut u32, targets: usize, trouble: usize, random: &mut Random) -> ClientPlan {
    let requests = (0..random.between(1, 5)).map(|_| {
        *id += 1;
        RequestPlan::draw(*id, targets, trouble, random)
    });
    let requests = requests.collect();
    let starts = if random.permille(500) { Duration::ZERO } else { random.millis(0, 3000) };
    let cancel_at = random.permille(200).then(|| random.between(1, 40) as u64);
    ClientPlan { starts, requests, cancel_at, random: random.fork() }
}

fn draw_act(config: &Config, random: &mut Random) -> (Duration, Act) {
    let act = match random.below(9) {
        0..3 => Act::Reload(Box::new(reloaded(config, random))),
        3 => Act::Drain,
        4 => Act::Undrain,
        5..7 => Act::SweepConnections,
        7 => Act::SweepLimits,
        _ => Act::CloseListener,
    };
    (random.millis(0, 8000), act)
}

/// Changes what a reload may change: limits, timeouts, and the addresses of the pool.
fn reloaded(config: &Config, random: &mut Random) -> Config {
    let drawn = draw_config(random);
    let egress = if random.permille(500) { config.egress.clone() } else { [pool("127.0.7.8/29", random)].into() };
    Config { egress, resolver: config.resolver.clone(), ..drawn }
}

fn pool(range: &str, random: &mut Random) -> (PoolName, Located<config::Pool>) {
    let range = PoolRange { cidr: range.parse().expect("a range"), seen_as: None, from: None, until: None };
    let select = random.one_of(&[SelectionPolicy::Sticky, SelectionPolicy::Spread]);
    let pool = config::Pool { ranges: vec![at(4, range)], select, ..fixture::pool() };
    (PoolName::new("default"), at(2, pool))
}

fn draw_config(random: &mut Random) -> Config {
    let mut config = fixture::config();
    config.server.allow_anonymous.value = true;
    config.server.max_deliveries = random.one_of(&[1, 2, 10, 100]);
    config.server.max_connections = Some(at(5, random.one_of(&[2, 10, 100])));
    config.guard.ports = vec![at(3, 80)];
    config.egress = [pool("127.0.7.0/28", random)].into();
    config.resolver.servers = vec![at(6, ([127, 0, 0, 1], 53).into()), at(7, ([127, 0, 0, 2], 53).into())];
    config.redact.path = PathForm::Full;
    config.redact.phone_numbers = false;
    let failures = random.one_of(&[0, 0, 1, 3]);
    let (second, open_max) = (Duration::from_secs(1), Duration::from_secs(8));
    config.circuit = Circuit { failures, window: Duration::from_secs(30), open: 2 * second, open_max };
    config.timeouts = Timeouts {
        tunnel: TOTAL_MAX,
        dns: random.millis(300, 3000),
        connect: random.millis(300, 3000),
        tls: second,
        body: random.millis(300, 6000),
        response: random.millis(300, 6000),
        idle: random.millis(500, 20_000),
        total: random.millis(1000, TOTAL_MAX.as_millis() as usize),
        reuse: random.millis(1000, 60_000),
    };
    let secret = Secret::new(vec![b'k'; 32]);
    let key = SigningKey { id: KeyId::new("k"), secret: at(41, secret), from: None, until: None };
    let signer = config::Signer { keys: vec![at(43, key)], ..fixture::signer("github") };
    config.signers = [(SignerName::new("platform"), at(40, signer))].into();
    config.limits = [(LimitName::new("few"), at(50, draw_limit(random)))].into();
    let routes = [("signed", 100), ("plain", 120), ("limited", 140)].into_iter().map(|(name, start)| {
        let Located { value: mut route, span } = fixture::route(start, name, &format!("*.{DOMAIN}"));
        route.paths = vec![at(start + 3, format!("/{name}/"))];
        route.plaintext = at(start + 2, PlaintextPolicy::Allow);
        route.interim = random.one_of(&[InterimPolicy::Http2, InterimPolicy::Forward]);
        route.sign.extend((name == "signed").then(|| at(start + 4, "platform".to_owned())));
        route.limits.extend((name == "limited").then(|| at(start + 5, "few".to_owned())));
        route.body_max = random.permille(200).then(|| at(start + 6, 5_000));
        route.response_max = random.permille(200).then(|| at(start + 7, 5_000));
        Located { value: route, span }
    });
    config.routes = routes.collect();
    config
}

fn draw_limit(random: &mut Random) -> Limit {
    let count = random.between(1, 6) as u32;
    Limit {
        rate: random.permille(500).then(|| at(51, Rate { count, period: Duration::from_secs(1) })),
        burst: None,
        concurrency: Some(at(52, random.one_of(&[1, 1, 2, 3]))),
        per: if random.permille(500) { vec![at(53, LimitDimension::Host)] } else { Vec::new() },
        wait: random.one_of(&[
            Duration::ZERO,
            Duration::from_millis(700),
            Duration::from_secs(4),
            Duration::from_secs(9),
        ]),
        bandwidth: random.permille(300).then(|| at(54, random.between(2_000, 60_000) as u64)),
        scope: None,
        report_only: random.permille(100),
    }
}
