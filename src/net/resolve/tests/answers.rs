//! Responses that a server must not send: too many addresses, or aliases without an end.
//! Does the resolver refuse them, and ask the next server?

use super::*;

#[tokio::test]
async fn resolver_refuses_a_response_with_more_addresses_than_it_keeps() {
    let server = FakeNameServer::start(|name, kind| {
        let number = if name == "most.example." { 256 } else { 257 };
        let addresses = (0..number).map(|n: u32| address(name, 60, &format!("198.51.{}.{}", n / 256, n % 256)));
        if kind == RecordType::A { FakeReply::TooLong(addresses.collect()) } else { FakeReply::NoData }
    });
    let server = server.await;
    let resolver = server.resolver();
    assert_eq!(resolver.resolve(&host("most.example"), BOTH, WAIT).await.unwrap().addresses.len(), 256);
    let more = resolver.resolve(&host("more.example"), BOTH, WAIT).await;
    assert_eq!(more.unwrap_err(), ResolveError::Failed("more than 256 addresses"));
}

#[tokio::test]
async fn resolver_queries_the_next_server_after_an_endless_chain_of_aliases() {
    let good = FakeNameServer::start(zone).await;
    let loop_in_one_response: server::FakeZone =
        |name, _| FakeReply::Records(vec![alias(name, "b.example."), alias("b.example.", name)]);
    let loop_over_responses: server::FakeZone = |name, _| match name {
        "b.example." => FakeReply::Records(vec![alias(name, "both.example.")]),
        _ => FakeReply::Records(vec![alias(name, "b.example.")]),
    };
    let alias_that_fails: server::FakeZone = |name, _| match name {
        "broken.example." => FakeReply::Code(ResponseCode::ServFail),
        _ => FakeReply::Records(vec![alias(name, "broken.example.")]),
    };
    let records_of_others: server::FakeZone = |_, _| FakeReply::Records(vec![address("b.example.", 60, "192.0.2.66")]);
    for zone in [loop_in_one_response, loop_over_responses, alias_that_fails, records_of_others] {
        let bad = FakeNameServer::start(zone).await;
        let answers = resolver(&[bad.address, good.address], &[]).resolve(&host("both.example"), V4, WAIT).await;
        assert_eq!(answers.map(|answers| answers.addresses.len()), Ok(2), "{:?}", bad.asked.lock().unwrap());
        let alone = resolver(&[bad.address], &[]).resolve(&host("both.example"), V4, WAIT).await;
        assert!(matches!(alone, Err(ResolveError::Failed(_))), "{alone:?}");
    }
}
