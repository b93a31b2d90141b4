//! A name server on loopback, over UDP and TCP, that says what a test wants.
//! What was it asked?

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// The server's reply to one question.
pub(super) enum FakeReply {
    Records(Vec<Record>),
    /// The same, but over UDP only that it does not fit.
    TooLong(Vec<Record>),
    NoSuchName,
    /// The same code, beside records.
    NoSuchNameBeside(Vec<Record>),
    NoData,
    Code(ResponseCode),
    /// This code without the question, as from a server that cannot read it, unless the question is without EDNS.
    NoEdns(ResponseCode, Vec<Record>),
    Silence,
    /// A reply after this time.
    Late(Duration, Vec<Record>),
}

pub(super) type FakeZone = fn(&str, RecordType) -> FakeReply;

pub(super) struct FakeNameServer {
    pub(super) address: SocketAddr,
    pub(super) asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    /// Stops with the server.
    _tasks: JoinSet<()>,
}

impl FakeNameServer {
    pub(super) async fn start(zone: FakeZone) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (address, udp) = (tcp.local_addr().unwrap(), Arc::new(udp));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some((reply, delay)) = reply(zone, &buffer[..length], true, &log) {
                    let udp = Arc::clone(&udp);
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        udp.send_to(&reply, peer).await.unwrap();
                    });
                }
            }
        });
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    let (reply, _) = reply(zone, &question, false, &log).unwrap();
                    stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn reply(
    zone: FakeZone,
    question: &[u8],
    udp: bool,
    log: &Mutex<Vec<(String, RecordType)>>,
) -> Option<(Vec<u8>, Duration)> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii();
    log.lock().unwrap().push((name.clone(), query.query_type()));
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 20);
    let soa = Record::from_rdata(query.name().clone(), 20, RData::SOA(soa));
    message.add_query(query.clone());
    let mut delay = Duration::ZERO;
    match zone(&name, query.query_type()) {
        FakeReply::Records(records) => drop(message.add_answers(records)),
        FakeReply::TooLong(_) if udp => message.metadata.truncation = true,
        FakeReply::TooLong(records) => drop(message.add_answers(records)),
        FakeReply::NoSuchName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(soa);
        }
        FakeReply::NoSuchNameBeside(records) => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_answers(records);
        }
        FakeReply::NoData => drop(message.add_authority(soa)),
        FakeReply::Code(code) => message.metadata.response_code = code,
        FakeReply::NoEdns(_, records) if question.edns.is_none() => drop(message.add_answers(records)),
        FakeReply::NoEdns(code, _) => {
            message.queries.clear();
            message.metadata.response_code = code;
        }
        FakeReply::Silence => return None,
        FakeReply::Late(after, records) => {
            delay = after;
            message.add_answers(records);
        }
    }
    Some((message.to_vec().unwrap(), delay))
}
