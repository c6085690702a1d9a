//! What a third party sees: a queue of its own, bound to the exchange for completion events.

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use shared::broker::rabbit::topology::{Names, Topology};
use std::time::Duration;

/// One foreign queue.
pub struct Tap {
    _connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

/// One event, and the correlation id of the message that carried it.
pub(crate) type Seen = (Value, Option<String>);

impl Tap {
    /// Consumes a queue that is there.
    pub async fn open_existing(url: &str, name: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self::consume(connection, channel, name).await
    }

    async fn consume(connection: Connection, channel: Channel, name: &str) -> Self {
        let consumer = channel
            .basic_consume(
                name.into(),
                "tap".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        Self {
            _connection: connection,
            channel,
            consumer,
        }
    }

    /// A queue `name`; bound to `exchange` by every key when one is given.
    pub async fn open(url: &str, name: &str, exchange: Option<&str>) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(name.into(), options, FieldTable::default())
            .await
            .unwrap();
        if let Some(exchange) = exchange {
            channel
                .queue_bind(
                    name.into(),
                    exchange.into(),
                    "#".into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .unwrap();
        }
        Self::consume(connection, channel, name).await
    }

    /// Events until `enough` says so, or until nothing comes for half a minute.
    pub async fn events(&mut self, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let mut seen = Vec::new();
        while !enough(&seen) {
            let Ok(Some(delivery)) =
                tokio::time::timeout(Duration::from_secs(30), self.consumer.next()).await
            else {
                panic!("no more events came after {seen:?}");
            };
            let delivery = delivery.unwrap();
            let correlation = delivery.properties.correlation_id().as_ref();
            let correlation = correlation.map(ToString::to_string);
            let body: Value = serde_json::from_slice(&delivery.data).unwrap();
            match body {
                Value::Array(many) => {
                    seen.extend(many.into_iter().map(|one| (one, correlation.clone())));
                }
                one => seen.push((one, correlation)),
            }
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
        seen
    }

    /// Publishes anything to a queue, as a stranger with rights would.
    pub async fn publish(&self, queue: &str, body: &[u8]) {
        self.channel
            .basic_publish(
                "".into(),
                queue.into(),
                lapin::options::BasicPublishOptions::default(),
                body,
                lapin::BasicProperties::default(),
            )
            .await
            .unwrap();
    }
}

/// Removes everything that a deployment with this prefix declared.
pub(crate) async fn remove(url: &str, prefix: &str) {
    let Ok(connection) = Connection::connect(url, ConnectionProperties::default()).await else {
        return;
    };
    let Ok(channel) = connection.create_channel().await else {
        return;
    };
    let topology = Topology::new(&Names::new(prefix), None);
    for queue in topology.queues {
        channel
            .queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default())
            .await
            .ok();
    }
    for exchange in topology.exchanges {
        channel
            .exchange_delete(
                exchange.name.as_str().into(),
                lapin::options::ExchangeDeleteOptions::default(),
            )
            .await
            .ok();
    }
}
