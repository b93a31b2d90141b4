//! OAuth2 tokens that were fetched for credentials, and the fetches in flight.
//! Is there a token to send, and if not, which delivery fetches one?

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::digest::{Fingerprint, Sha256};
use crate::lru::LruCache;
use crate::names::{PoolName, TenantName};
use crate::panics::Mutex;
use crate::policy::credential::{Grant, backoff};
use crate::single_flight::{Flight, Follower, Leader};

/// Everything that distinguishes one token from another: the request for it, the way to the endpoint, and the tenant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TokenKey {
    /// The fingerprint of the request to the token endpoint.
    pub credential: [u8; 32],
    pub pool: PoolName,
    /// The fingerprint of the trust that the endpoint satisfied.
    pub trust: [u8; 32],
    /// `None`: the token serves all clients of the route.
    pub tenant: Option<TenantName>,
}

impl TokenKey {
    /// Returns the hash by which instances of a fleet know the token.
    pub fn fingerprint(&self) -> Sha256 {
        let Self { credential, pool, trust, tenant } = self;
        let parts: [&[u8]; 3] = [credential, pool.as_str().as_bytes(), trust];
        Fingerprint::of_parts(parts.into_iter().chain(tenant.as_ref().map(|tenant| tenant.as_str().as_bytes())))
    }
}

/// The capacity of the cache. A configuration names far fewer; reloads leave some behind.
const TOKENS_MAX: usize = 10_000;
/// The time between two fetches for a target that refuses its tokens. A target that takes no token must not cause a
/// fetch for each webhook.
const REFETCH_INTERVAL: Duration = Duration::from_secs(30);

/// The tokens by key. A new key evicts the least recently used one. Deliveries that wait for a fetch of an evicted key
/// still get its result.
pub struct TokenCache(Mutex<LruCache<TokenKey, TokenEntry>>);

impl Default for TokenCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(TOKENS_MAX)))
    }
}

/// The state of one key.
#[derive(Default)]
struct TokenEntry {
    token: Option<CachedToken>,
    failure: Option<FetchFailure>,
    /// The fetches that have failed in a row.
    failures: u32,
    /// The fetch in flight.
    fetch: Option<Flight<FetchResult>>,
    refused: Option<RefusedToken>,
}

/// The last token that the cache dropped because the target refused it.
struct RefusedToken {
    token: AccessToken,
    at: Instant,
    /// The end of the time for which another instance may still offer it.
    until: Instant,
}

struct CachedToken {
    token: AccessToken,
    refresh: Instant,
    until: Instant,
}

/// The value of a header with a token. Two tokens of two fetches differ, even if their text is equal.
#[derive(Clone)]
pub struct AccessToken(Arc<HeaderValue>);

impl AccessToken {
    pub fn value(&self) -> HeaderValue {
        HeaderValue::clone(&self.0)
    }
}

/// A failed fetch. The next fetch waits until the backoff is over.
#[derive(Clone)]
pub struct FetchFailure {
    /// The error of the code that fetches tokens; the cache does not read it.
    pub error: Arc<dyn Error + Send + Sync>,
    until: Instant,
}

impl FetchFailure {
    /// Returns the time until the next fetch may begin.
    pub fn retry_after(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

type FetchResult = Result<AccessToken, FetchFailure>;

pub enum TokenLookup {
    Token(AccessToken),
    Failed(FetchFailure),
    /// A fetch is in flight. Its result is `None` if the leader gave up.
    Pending(Follower<FetchResult>),
}

/// The duty to fetch a token: each key has one fetch in flight at most. Dropping it without a result lets another
/// delivery fetch.
pub struct FetchGuard {
    key: TokenKey,
    cache: Arc<TokenCache>,
    leader: Leader<FetchResult>,
    refused: Option<AccessToken>,
}

impl TokenCache {
    /// Returns the token, the last failure, or a fetch to wait for. A caller that gets a [`FetchGuard`] must run the
    /// fetch; a token that is due for a refresh serves meanwhile.
    pub fn find(self: &Arc<Self>, key: &TokenKey, now: Instant) -> (TokenLookup, Option<FetchGuard>) {
        let mut entries = self.0.lock();
        let entry = entries.get_or_insert_with(key, TokenEntry::default);
        let failure = entry.failure.as_ref().filter(|failure| now < failure.until);
        if let Some(cached) = entry.token.as_ref().filter(|cached| now < cached.until) {
            let token = TokenLookup::Token(cached.token.clone());
            let is_due = cached.refresh <= now && entry.fetch.is_none() && failure.is_none();
            return (token, is_due.then(|| self.begin_fetch(key, entry)));
        }
        match (&entry.fetch, failure) {
            (Some(fetch), _) => (TokenLookup::Pending(fetch.join()), None),
            (None, Some(failure)) => (TokenLookup::Failed(failure.clone()), None),
            (None, None) => {
                let guard = self.begin_fetch(key, entry);
                (TokenLookup::Pending(guard.leader.flight().join()), Some(guard))
            }
        }
    }

    fn begin_fetch(self: &Arc<Self>, key: &TokenKey, entry: &mut TokenEntry) -> FetchGuard {
        let leader = Flight::begin(());
        entry.fetch = Some(leader.flight().clone());
        let refused = entry.refused.as_ref().map(|refused| refused.token.clone());
        FetchGuard { key: key.clone(), cache: Arc::clone(self), leader, refused }
    }

    /// Drops a token that the target refused, so that the next delivery fetches another. Refusals within
    /// [`REFETCH_INTERVAL`] of the last one change nothing.
    pub fn refused(&self, key: &TokenKey, token: &AccessToken, now: Instant) {
        let mut entries = self.0.lock();
        let Some(entry) = entries.peek(key) else { return };
        // Several deliveries may have sent the same token: the cache may hold its successor already.
        let Some(cached) = entry.token.as_ref().filter(|cached| Arc::ptr_eq(&cached.token.0, &token.0)) else { return };
        if entry.refused.as_ref().is_none_or(|last| now.duration_since(last.at) >= REFETCH_INTERVAL) {
            let until = cached.until.max(now + REFETCH_INTERVAL);
            entry.refused = Some(RefusedToken { token: token.clone(), at: now, until });
            entry.token = None;
        }
    }

    /// Removes the entries that have expired, and those of credentials that are no longer configured.
    pub fn sweep(&self, now: Instant, is_configured: impl Fn(&[u8; 32]) -> bool) {
        self.0.lock().retain(|key, entry| {
            let is_over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
            let ends = [
                entry.token.as_ref().map(|cached| cached.until),
                entry.failure.as_ref().map(|failure| failure.until),
                entry.refused.as_ref().map(|refused| refused.until),
            ];
            entry.fetch.is_some() || is_configured(&key.credential) && !ends.into_iter().all(is_over)
        });
    }
}

impl FetchGuard {
    pub fn key(&self) -> &TokenKey {
        &self.key
    }

    /// Returns whether the target has refused this token.
    pub fn is_refused(&self, grant: &Grant) -> bool {
        self.refused.as_ref().is_some_and(|refused| *refused.0 == grant.value)
    }

    pub fn granted(self, grant: Grant, granted_at: Instant) {
        let (refresh, until) = (granted_at + grant.refresh_after(), granted_at + grant.usable_for());
        let token = AccessToken(Arc::new(grant.value));
        if let Some(entry) = self.cache.0.lock().peek(&self.key) {
            entry.token = Some(CachedToken { token: token.clone(), refresh, until });
            (entry.failure, entry.failures) = (None, 0);
        }
        // Deliveries that waited send the token, however short its lifetime is.
        self.leader.finish(Ok(token));
    }

    pub fn failed(self, error: Arc<dyn Error + Send + Sync>, now: Instant) {
        let mut failure = FetchFailure { error, until: now };
        if let Some(entry) = self.cache.0.lock().peek(&self.key) {
            entry.failures = entry.failures.saturating_add(1);
            failure.until += backoff(entry.failures);
            entry.failure = Some(failure.clone());
        }
        self.leader.finish(Err(failure));
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        let mut entries = self.cache.0.lock();
        let Some(entry) = entries.peek(&self.key) else { return };
        // After an eviction the entry may belong to a later fetch.
        if entry.fetch.as_ref().is_some_and(|fetch| self.leader.leads(fetch)) {
            entry.fetch = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::policy::credential::OAuth2;

    fn key(tenant: Option<&str>) -> TokenKey {
        let tenant = tenant.map(TenantName::new);
        TokenKey { credential: [1; 32], pool: PoolName::new("default"), trust: [2; 32], tenant }
    }

    fn grant(token: &str, seconds: u64) -> Grant {
        let body = format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":{seconds}}}"#);
        OAuth2::parse_response(StatusCode::OK, body.as_bytes()).unwrap()
    }

    fn cached(tokens: &Arc<TokenCache>, key: &TokenKey, now: Instant) -> AccessToken {
        match tokens.find(key, now) {
            (TokenLookup::Token(token), None) => token,
            (TokenLookup::Token(_), Some(_)) => panic!("a refresh is due"),
            (TokenLookup::Failed(failure), _) => panic!("{}", failure.error),
            (TokenLookup::Pending(_), _) => panic!("no token"),
        }
    }

    fn begin_fetch(tokens: &Arc<TokenCache>, key: &TokenKey, now: Instant) -> (Follower<FetchResult>, FetchGuard) {
        match tokens.find(key, now) {
            (TokenLookup::Pending(follower), Some(guard)) => (follower, guard),
            _ => panic!("no fetch to run"),
        }
    }

    #[tokio::test]
    async fn token_cache_fetches_once_and_gives_all_waiting_deliveries_the_token() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        let (first, guard) = begin_fetch(&tokens, &key, now);
        let (TokenLookup::Pending(second), None) = tokens.find(&key, now) else { panic!("two fetches") };
        guard.granted(grant("t", 3600), now);
        for mut follower in [first, second] {
            assert_eq!(follower.result().await.unwrap().ok().unwrap().value(), "Bearer t");
        }
        assert_eq!(cached(&tokens, &key, now).value(), "Bearer t");
        begin_fetch(&tokens, &super::tests::key(Some("acme")), now);
    }

    #[tokio::test]
    async fn token_that_expires_at_once_serves_the_deliveries_that_waited() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        let (mut follower, guard) = begin_fetch(&tokens, &key, now);
        guard.granted(grant("t", 0), now);
        assert!(follower.result().await.unwrap().is_ok());
        begin_fetch(&tokens, &key, now);
    }

    #[test]
    fn token_is_refreshed_before_it_expires() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        begin_fetch(&tokens, &key, now).1.granted(grant("old", 3600), now);
        let (refresh_after, usable_for) = (grant("old", 3600).refresh_after(), grant("old", 3600).usable_for());
        assert_eq!(cached(&tokens, &key, now + refresh_after - Duration::from_secs(1)).value(), "Bearer old");
        let due = now + refresh_after;
        let (TokenLookup::Token(token), Some(guard)) = tokens.find(&key, due) else { panic!("no refresh") };
        assert_eq!(token.value(), "Bearer old", "it serves while the next one is fetched");
        assert_eq!(cached(&tokens, &key, due).value(), "Bearer old", "one refresh at a time");
        guard.granted(grant("new", 3600), due);
        assert_eq!(cached(&tokens, &key, now + usable_for).value(), "Bearer new");
    }

    #[tokio::test]
    async fn token_fetch_failure_is_shared_until_its_backoff_is_over() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        let (mut follower, guard) = begin_fetch(&tokens, &key, now);
        guard.failed(Arc::new(std::io::Error::other("no")), now);
        assert!(follower.result().await.unwrap().is_err());
        let (TokenLookup::Failed(failure), None) = tokens.find(&key, now) else { panic!("a fetch without backoff") };
        let backoff = failure.retry_after(now);
        assert!(backoff > Duration::from_millis(500) && backoff <= Duration::from_secs(1), "{backoff:?}");
        begin_fetch(&tokens, &key, now + backoff);
    }

    #[tokio::test]
    async fn token_fetch_that_is_dropped_lets_another_delivery_fetch() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        let (mut follower, guard) = begin_fetch(&tokens, &key, now);
        drop(guard);
        assert!(follower.result().await.is_none());
        begin_fetch(&tokens, &key, now);
    }

    #[test]
    fn refused_token_is_dropped_once_in_an_interval() {
        let (tokens, key, now) = (Arc::new(TokenCache::default()), key(None), Instant::now());
        let fetch = |token| begin_fetch(&tokens, &key, now).1.granted(grant(token, 3600), now);
        fetch("old");
        let old = cached(&tokens, &key, now);
        tokens.refused(&key, &old, now);
        fetch("new");
        tokens.refused(&key, &old, now);
        assert_eq!(cached(&tokens, &key, now).value(), "Bearer new", "only the refused token is dropped");
        let new = cached(&tokens, &key, now);
        tokens.refused(&key, &new, now);
        assert_eq!(cached(&tokens, &key, now).value(), "Bearer new", "the target refuses every token");
        tokens.refused(&key, &new, now + REFETCH_INTERVAL);
        begin_fetch(&tokens, &key, now + REFETCH_INTERVAL);
    }

    #[test]
    fn token_sweep_removes_expired_and_unconfigured_tokens_but_no_fetch_in_flight() {
        let (tokens, now) = (Arc::new(TokenCache::default()), Instant::now());
        begin_fetch(&tokens, &key(None), now).1.granted(grant("t", 3600), now);
        let (_follower, _guard) = begin_fetch(&tokens, &key(Some("in flight")), now);
        tokens.sweep(now, |_| true);
        assert_eq!(cached(&tokens, &key(None), now).value(), "Bearer t");
        tokens.sweep(now, |_| false);
        assert_eq!(tokens.0.lock().len(), 1, "the fetch in flight stays");
        begin_fetch(&tokens, &key(None), now).1.granted(grant("t", 3600), now);
        tokens.sweep(now + Duration::from_secs(3600), |_| true);
        assert_eq!(tokens.0.lock().len(), 1, "the token has expired");
    }

    #[test]
    fn token_cache_evicts_one_token_for_a_new_key() {
        let (tokens, now) = (Arc::new(TokenCache::default()), Instant::now());
        let tenant = |number: usize| key(Some(&number.to_string()));
        for number in 0..TOKENS_MAX {
            begin_fetch(&tokens, &tenant(number), now).1.granted(grant("t", 3600), now);
        }
        cached(&tokens, &tenant(0), now);
        let (_follower, _guard) = begin_fetch(&tokens, &tenant(TOKENS_MAX), now);
        assert_eq!(tokens.0.lock().len(), TOKENS_MAX);
        cached(&tokens, &tenant(0), now);
        cached(&tokens, &tenant(2), now);
        assert!(tokens.0.lock().peek(&tenant(1)).is_none(), "the least recently used");
    }

    #[test]
    fn token_fetch_of_an_evicted_key_leaves_the_next_fetch_alone() {
        let (tokens, now) = (Arc::new(TokenCache::default()), Instant::now());
        let (_, first) = begin_fetch(&tokens, &key(None), now);
        tokens.0.lock().retain(|_, _| false);
        let (_follower, _second) = begin_fetch(&tokens, &key(None), now);
        drop(first);
        let (TokenLookup::Pending(_), None) = tokens.find(&key(None), now) else { panic!("a third fetch") };
    }
}
