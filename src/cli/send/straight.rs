//! A delivery in this process, as the proxy of this configuration would make it.
//! What does the story itself say of it?

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;

use super::super::Valid;
use super::super::alone::with_live;
use super::Errand;
use super::answer::Answer;
use crate::delivery::{self, Arrival};
use crate::live::Live;
use crate::names::ClientName;
use crate::policy::identify::{Caller, Stated};

pub(super) fn send(valid: Valid, client: ClientName, errand: &Errand) -> Result<Answer, ExitCode> {
    let caller = Caller { stated: Some(Stated::by_operator(client)), ..Caller::default() };
    with_live(valid, async |live| deliver(live, caller, errand).await)
}

async fn deliver(live: &Arc<Live>, caller: Caller, errand: &Errand) -> Answer {
    let body: Full<Bytes> = errand.body.clone().into();
    let arrival = Arrival {
        method: errand.method.clone(),
        version: Version::HTTP_11,
        target: errand.url.clone(),
        fields: errand.fields.clone(),
        body: Box::pin(body.map_err(|never| match never {})),
        caller: Arc::new(caller),
        interim: None,
    };
    let started = Instant::now();
    let response = delivery::deliver(live, arrival).await;
    let mut answer = Answer::read(response, started).await;
    // The answer was read to its end, so the delivery has left its record.
    answer.record = serde_json::from_slice(&live.records.take()).ok();
    answer
}
