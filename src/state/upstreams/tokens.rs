//! Tokens that were fetched for credentials, and who is fetching one now.
//! Is there a token to show, and if not, whose turn is it to fetch one?

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::lru::LruCache;
use crate::names::{PoolName, TenantName};
use crate::policy::credential::{Grant, backoff};

/// Everything that makes a token what it is: what was said for it, from where, and to whom.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TokenKey {
    /// The fingerprint of what is said to the token endpoint.
    pub credential: [u8; 32],
    pub pool: PoolName,
    /// The fingerprint of the trust that the endpoint satisfied.
    pub trust: [u8; 32],
    /// `None`: for all that the route is for.
    pub tenant: Option<TenantName>,
}

/// Configurations name far fewer; reloads leave some behind.
const TOKENS_MAX: usize = 10_000;
/// A target that takes no token at all does not make us fetch one for each webhook.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// A new key evicts the least recently used one. Deliveries that wait for a fetch of an evicted key get its outcome all
/// the same.
pub struct TokenCache(Mutex<LruCache<TokenKey, TokenEntry>>);

impl Default for TokenCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(TOKENS_MAX)))
    }
}

/// What is known of one key.
#[derive(Default)]
struct TokenEntry {
    kept: Option<CachedToken>,
    failed: Option<FetchFailure>,
    /// In a row.
    failures: u32,
    /// While somebody fetches.
    coming: Option<PendingFetch>,
    /// When the target last made us forget a token.
    refused: Option<Instant>,
}

struct CachedToken {
    token: AccessToken,
    refresh: Instant,
    until: Instant,
}

/// A header's value. Two that were fetched one after the other are not the same, even if they read alike.
#[derive(Clone)]
pub struct AccessToken(Arc<HeaderValue>);

impl AccessToken {
    pub fn value(&self) -> HeaderValue {
        HeaderValue::clone(&self.0)
    }
}

/// Nobody asks again for a moment.
#[derive(Clone)]
pub struct FetchFailure {
    /// For whoever fetches tokens to say, and to understand.
    pub error: Arc<dyn Error + Send + Sync>,
    until: Instant,
}

impl FetchFailure {
    pub fn again_in(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

type FetchResult = Result<AccessToken, FetchFailure>;

/// A token that somebody is fetching.
#[derive(Clone)]
pub struct PendingFetch(watch::Receiver<Option<FetchResult>>);

impl PendingFetch {
    /// `None`: whoever was fetching has given up without a word.
    pub async fn outcome(mut self) -> Option<FetchResult> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

pub enum TokenLookup {
    Token(AccessToken),
    Failed(FetchFailure),
    Pending(PendingFetch),
}

/// The duty to fetch a token: at any time one for each key. Dropping it without an outcome hands it on.
pub struct FetchGuard {
    key: TokenKey,
    home: Arc<TokenCache>,
    result: watch::Sender<Option<FetchResult>>,
}

impl TokenCache {
    /// What there is to show, to wait for or to say. Whoever is given an errand runs it, and may show what is found
    /// meanwhile: a token is fetched anew before it ends.
    pub fn find(self: &Arc<Self>, key: &TokenKey) -> (TokenLookup, Option<FetchGuard>) {
        let now = Instant::now();
        let mut entries = self.0.lock();
        let entry = entries.get_or_insert_with(key, TokenEntry::default);
        let resting = entry.failed.as_ref().filter(|failed| now < failed.until);
        if let Some(kept) = entry.kept.as_ref().filter(|kept| now < kept.until) {
            let found = TokenLookup::Token(kept.token.clone());
            let is_due = kept.refresh <= now && entry.coming.is_none() && resting.is_none();
            return (found, is_due.then(|| self.errand(key, entry).0));
        }
        match (&entry.coming, resting) {
            (Some(coming), _) => (TokenLookup::Pending(coming.clone()), None),
            (None, Some(failed)) => (TokenLookup::Failed(failed.clone()), None),
            (None, None) => {
                let (errand, coming) = self.errand(key, entry);
                (TokenLookup::Pending(coming), Some(errand))
            }
        }
    }

    fn errand(self: &Arc<Self>, key: &TokenKey, entry: &mut TokenEntry) -> (FetchGuard, PendingFetch) {
        let (word, heard) = watch::channel(None);
        let coming = PendingFetch(heard);
        entry.coming = Some(coming.clone());
        (FetchGuard { key: key.clone(), home: Arc::clone(self), result: word }, coming)
    }

    /// The target does not take this token: the next delivery fetches another, unless that was done a moment ago.
    pub fn refused(&self, key: &TokenKey, token: &AccessToken) {
        let now = Instant::now();
        let mut entries = self.0.lock();
        let Some(entry) = entries.peek(key) else { return };
        // Many may have been on their way with the same token: what came after it is another.
        let is_kept = entry.kept.as_ref().is_some_and(|kept| Arc::ptr_eq(&kept.token.0, &token.0));
        if is_kept && entry.refused.is_none_or(|last| now.duration_since(last) >= REFUSED_AGAIN) {
            entry.kept = None;
            entry.refused = Some(now);
        }
    }

    /// Forgets what is over, and what belongs to a credential that is no longer configured.
    pub fn sweep(&self, is_configured: impl Fn(&[u8; 32]) -> bool) {
        let now = Instant::now();
        self.0.lock().retain(|key, entry| {
            let is_over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
            let ends = [
                entry.kept.as_ref().map(|kept| kept.until),
                entry.failed.as_ref().map(|failed| failed.until),
                entry.refused.map(|last| last + REFUSED_AGAIN),
            ];
            entry.coming.is_some() || is_configured(&key.credential) && !ends.into_iter().all(is_over)
        });
    }
}

impl FetchGuard {
    pub fn tenant(&self) -> Option<&TenantName> {
        self.key.tenant.as_ref()
    }

    pub fn granted(self, grant: Grant) {
        let now = Instant::now();
        let (refresh, until) = (now + grant.refresh_after(), now + grant.usable_for());
        let token = AccessToken(Arc::new(grant.value));
        if let Some(entry) = self.home.0.lock().peek(&self.key) {
            entry.kept = Some(CachedToken { token: token.clone(), refresh, until });
            (entry.failed, entry.failures) = (None, 0);
        }
        // Whoever has waited may show it, however short its life is.
        self.result.send_replace(Some(Ok(token)));
    }

    pub fn failed(self, why: Arc<dyn Error + Send + Sync>) {
        let mut failed = FetchFailure { error: why, until: Instant::now() };
        if let Some(entry) = self.home.0.lock().peek(&self.key) {
            entry.failures = entry.failures.saturating_add(1);
            failed.until += backoff(entry.failures);
            entry.failed = Some(failed.clone());
        }
        self.result.send_replace(Some(Err(failed)));
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        let mut entries = self.home.0.lock();
        let Some(entry) = entries.peek(&self.key) else { return };
        // After an eviction the entry may belong to a later fetch.
        if entry.coming.as_ref().is_some_and(|coming| coming.0.same_channel(&self.result.subscribe())) {
            entry.coming = None;
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
        OAuth2::judge(StatusCode::OK, body.as_bytes()).unwrap()
    }

    fn error() -> Arc<dyn Error + Send + Sync> {
        Arc::new(std::io::Error::other("no"))
    }

    fn shown(tokens: &Arc<TokenCache>, key: &TokenKey) -> String {
        match tokens.find(key) {
            (TokenLookup::Token(token), None) => token.value().to_str().unwrap().to_owned(),
            (TokenLookup::Token(_), Some(_)) => panic!("due"),
            (TokenLookup::Failed(failed), _) => panic!("{}", failed.error),
            (TokenLookup::Pending(_), _) => panic!("not there"),
        }
    }

    #[tokio::test]
    async fn one_fetches_and_all_the_others_wait_for_it() {
        let (tokens, key) = (Arc::new(TokenCache::default()), key(None));
        let (TokenLookup::Pending(first), Some(errand)) = tokens.find(&key) else { panic!("nothing to wait for") };
        let (TokenLookup::Pending(second), None) = tokens.find(&key) else { panic!("two errands") };
        errand.granted(grant("t", 3600));
        for coming in [first, second] {
            assert_eq!(coming.outcome().await.unwrap().ok().unwrap().value(), "Bearer t");
        }
        assert_eq!(shown(&tokens, &key), "Bearer t");
        assert!(matches!(tokens.find(&super::tests::key(Some("acme"))), (TokenLookup::Pending(_), Some(_))));
    }

    #[tokio::test]
    async fn a_token_without_a_life_is_shown_to_those_who_waited() {
        let (tokens, key) = (Arc::new(TokenCache::default()), key(None));
        let (TokenLookup::Pending(coming), Some(errand)) = tokens.find(&key) else { panic!("nothing to wait for") };
        errand.granted(grant("t", 0));
        assert!(coming.outcome().await.unwrap().is_ok());
        assert!(matches!(tokens.find(&key), (TokenLookup::Pending(_), Some(_))));
    }

    #[tokio::test]
    async fn a_failure_is_everybodys_and_rests() {
        let (tokens, key) = (Arc::new(TokenCache::default()), key(None));
        let (TokenLookup::Pending(coming), Some(errand)) = tokens.find(&key) else { panic!("nothing to wait for") };
        errand.failed(error());
        assert!(coming.outcome().await.unwrap().is_err());
        let (TokenLookup::Failed(failed), None) = tokens.find(&key) else { panic!("asked again at once") };
        assert!(failed.again_in() > Duration::from_millis(500) && failed.again_in() <= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn an_errand_that_is_dropped_is_somebody_elses() {
        let (tokens, key) = (Arc::new(TokenCache::default()), key(None));
        let (TokenLookup::Pending(coming), Some(errand)) = tokens.find(&key) else { panic!("nothing to wait for") };
        drop(errand);
        assert!(coming.outcome().await.is_none());
        assert!(matches!(tokens.find(&key), (TokenLookup::Pending(_), Some(_))));
    }

    #[tokio::test]
    async fn a_refused_token_is_forgotten_once_and_only_itself() {
        let (tokens, key) = (Arc::new(TokenCache::default()), key(None));
        let fetch = |token| match tokens.find(&key) {
            (TokenLookup::Pending(_), Some(errand)) => errand.granted(grant(token, 3600)),
            _ => panic!("no errand"),
        };
        let token = || match tokens.find(&key) {
            (TokenLookup::Token(token), None) => token,
            _ => panic!("no token"),
        };
        fetch("old");
        let old = token();
        tokens.refused(&key, &old);
        fetch("new");
        tokens.refused(&key, &old);
        assert_eq!(shown(&tokens, &key), "Bearer new");
        tokens.refused(&key, &token());
        assert_eq!(shown(&tokens, &key), "Bearer new", "twice in a row is the target's doing");
    }

    #[tokio::test]
    async fn what_is_over_is_swept_away() {
        let tokens = Arc::new(TokenCache::default());
        let (_, errand) = tokens.find(&key(None));
        let (_, _under_way) = tokens.find(&key(Some("under way")));
        errand.unwrap().granted(grant("t", 3600));
        tokens.sweep(|_| true);
        assert_eq!(shown(&tokens, &key(None)), "Bearer t");
        tokens.sweep(|_| false);
        assert_eq!(tokens.0.lock().len(), 1, "what is under way stays");
    }

    #[tokio::test]
    async fn token_cache_evicts_one_token_for_a_new_key() {
        let tokens = Arc::new(TokenCache::default());
        let tenant = |number: usize| key(Some(&number.to_string()));
        for number in 0..TOKENS_MAX {
            tokens.find(&tenant(number)).1.unwrap().granted(grant("t", 3600));
        }
        assert_eq!(shown(&tokens, &tenant(0)), "Bearer t");
        let (_, _fetching) = tokens.find(&tenant(TOKENS_MAX));
        assert_eq!(tokens.0.lock().len(), TOKENS_MAX);
        assert_eq!(shown(&tokens, &tenant(0)), "Bearer t", "used after all others");
        assert_eq!(shown(&tokens, &tenant(2)), "Bearer t");
        assert!(tokens.0.lock().peek(&tenant(1)).is_none(), "the least recently used");
    }

    #[tokio::test]
    async fn token_fetch_of_an_evicted_key_leaves_the_next_fetch_alone() {
        let tokens = Arc::new(TokenCache::default());
        let (_, first) = tokens.find(&key(None));
        tokens.0.lock().retain(|_, _| false);
        let (TokenLookup::Pending(coming), Some(_second)) = tokens.find(&key(None)) else { panic!("no second fetch") };
        drop(first);
        let (TokenLookup::Pending(again), None) = tokens.find(&key(None)) else { panic!("a third fetch") };
        assert!(again.0.same_channel(&coming.0));
    }
}
