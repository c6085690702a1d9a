//! What PostgreSQL makes of the statements on the way of a push while there is next to nothing in the tables: a plan that is kept while they grow.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{close, databases, phone, postgres};
use shared::clock::Millis;
use shared::crypto::random_text;
use shared::domain::{Kind, OpenPrompts, Rules};
use shared::id::StoreId;
use shared::message::{Job, Lane, Route};
use shared::store::db::{Arg, Row, Rows, Statement, Tx};
use shared::store::{
    Begun, Chunk, Claimed, Committed, DeliveryResult, Handover, NewBatch, NewPush, NewRow,
    Recorded, SealedPolicy, Store, Taken, Wanted,
};
use std::collections::BTreeSet;
use std::path::Path;

const NOW: Millis = 1_000_000;
const LEASE: Millis = 30_000;
/// Their rows multiply while a connection lives.
const GROWING: [&str; 2] = ["pushes", "deliveries"];

async fn interactive(store: &Store, tenant: &StoreId, n: usize) {
    let new = NewPush {
        nonce: random_text::<12>(),
        idempotency: Some((format!("key {n}"), "h".to_owned())),
        ..samples::push(tenant, samples::content(Kind::Generic, "Hello"), NOW)
    };
    let taken = store.take(std::slice::from_ref(&new), NOW).await.unwrap();
    assert!(matches!(taken[..], [Taken::New(_)]));
    let wanted = Wanted {
        pushes: vec![new.id],
        ..Wanted::default()
    };
    let claimed = store.claim(&wanted, NOW, LEASE).await.unwrap().claimed;
    store.record(&sent(claimed), NOW).await.unwrap();
}

fn sent(claimed: Vec<Claimed>) -> Vec<Recorded> {
    let sent = |claimed| Recorded {
        claimed,
        result: DeliveryResult::Sent { provider_id: None },
        called: true,
    };
    claimed.into_iter().map(sent).collect()
}

async fn batch(store: &Store, tenant: &StoreId, committed: &mut Committed) {
    let new = NewBatch {
        store: tenant.clone(),
        name: "March".to_owned(),
        idempotency: None,
        atomic: false,
        max_per_second: None,
    };
    let Begun::Open(upload) = store.begin_upload(&new, NOW).await.unwrap() else {
        panic!("a fresh batch is open");
    };
    let rows = [NewRow {
        key: Some(random_text::<12>()),
        nonce: random_text::<12>(),
        ..samples::row(1, samples::content(Kind::Generic, "Hello"), NOW)
    }];
    let took = store.take_rows(&upload, &rows, &[], (1, 1), |_| None, NOW);
    assert_eq!(took.await.unwrap().unwrap().new, 1);
    store
        .release(&[(upload.batch.id.clone(), 1)], NOW)
        .await
        .unwrap();
    let mut messages = Vec::new();
    for class in committed {
        while let Ok(more) = class.try_recv() {
            messages.extend(more);
        }
    }
    let bulk = |m: &&shared::message::Message| matches!(m.route, Route::Jobs(Lane::Bulk));
    let job = Job::decode(messages.iter().find(bulk).unwrap()).unwrap();
    let chunk = Chunk {
        id: job.chunk.unwrap(),
        pushes: job.pushes,
    };
    let claimed = store.claim_chunks(&[chunk], NOW, LEASE).await.unwrap();
    store.record(&sent(claimed), NOW).await.unwrap();
}

async fn rows(tx: &mut Tx, text: String) -> Vec<Row> {
    // The texts of a test live as long as it.
    let statement: &'static Statement = Box::leak(Box::new(Statement::new(text.leak())));
    tx.fetch(statement, &[]).await.unwrap()
}

/// The plans of the statements that this connection has prepared, of those that look up rows of a growing table.
async fn plans(tx: &mut Tx) -> Vec<(String, Vec<String>)> {
    let prepared = "SELECT name, statement, cardinality(parameter_types)::bigint AS n FROM pg_prepared_statements";
    rows(
        tx,
        "SET LOCAL plan_cache_mode = force_generic_plan".to_owned(),
    )
    .await;
    let mut plans = Vec::new();
    for one in rows(tx, prepared.to_owned()).await {
        let text = one.text("statement").unwrap();
        let verbs = ["SELECT", "UPDATE", "DELETE"];
        if verbs.iter().any(|verb| text.starts_with(verb))
            && (text.contains("ANY(") || text.contains("unnest("))
            && GROWING.iter().any(|table| text.contains(table))
        {
            let nulls = vec!["NULL"; usize::try_from(one.int("n").unwrap()).unwrap()];
            let name = one.text("name").unwrap();
            let explain = format!("EXPLAIN EXECUTE {name}({})", nulls.join(", "));
            let plan = rows(tx, explain).await;
            let plan = plan.iter().map(|row| row.text("QUERY PLAN").unwrap());
            plans.push((text, plan.collect()));
        }
    }
    plans
}

/// Conditions that leave a few rows, however many a store, a user or a batch has.
const SELECTIVE: [&str; 5] = [
    "(id = ",
    "(push_id = ",
    "(idem_key = ",
    "(ROW(user_id, id) > ",
    "(line <= ",
];

fn is_selective(line: &str) -> bool {
    let condition = line.split_once("Index Cond: ");
    condition.is_some_and(|(_, text)| SELECTIVE.iter().any(|one| text.contains(one)))
}

/// The lines of the plan that read a growing table without a condition on an index that leaves few rows.
fn whole_reads(plan: &[String]) -> Vec<&String> {
    let reads = |line: &str| {
        let scan = line.contains("Scan");
        scan && GROWING
            .iter()
            .any(|table| line.contains(&format!(" on {table}")))
    };
    let mut found = Vec::new();
    for (n, line) in plan.iter().enumerate().filter(|(_, line)| reads(line)) {
        let depth = |line: &str| line.len() - line.trim_start().len();
        let below = plan[n + 1..]
            .iter()
            .take_while(|one| depth(one) > depth(line));
        if !below.into_iter().any(|line| is_selective(line)) {
            found.push(line);
        }
    }
    found
}

#[tokio::test]
async fn no_plan_of_a_small_table_reads_it_whole() {
    if let Some((db, left)) = postgres("plans").await {
        let (handover, mut committed) = Handover::channel();
        let store = Store::new(db.clone(), handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let device = phone(Some("ab12"));
        let added = store.add_device(&tenant, &user, &device, 5, NOW).await;
        added.unwrap().unwrap();
        let rules = Rules {
            max_prompts: 1_000,
            open_prompts: OpenPrompts::Many,
            ..Rules::default()
        };
        let sealed = SealedPolicy {
            name: "p".to_owned(),
            apns: Some("sealed".to_owned()),
            fcm: None,
            rules,
        };
        let set = store.put_push_policy(&tenant, "payroll", sealed, NOW);
        set.await.unwrap();
        let mut looked_at = BTreeSet::new();
        // Never analysed, with a few rows, and analysed with as many rows as a table has on its first day.
        for round in 0..3 {
            for n in 0..=round * 20 {
                interactive(&store, &tenant, round * 100 + n).await;
            }
            batch(&store, &tenant, &mut committed).await;
            // Each connection has statements of its own.
            let mut connections = Vec::new();
            for _ in 0..4 {
                connections.push(db.begin().await.unwrap());
                connections.push(db.begin_repeatable().await.unwrap());
            }
            for tx in &mut connections {
                for (text, plan) in plans(tx).await {
                    let whole = whole_reads(&plan);
                    assert!(whole.is_empty(), "{text}\n{}", plan.join("\n"));
                    looked_at.insert(text);
                }
            }
            for tx in connections {
                tx.commit().await.unwrap();
            }
            let mut tx = db.begin().await.unwrap();
            rows(
                &mut tx,
                "ANALYZE pushes, deliveries, users, devices".to_owned(),
            )
            .await;
            tx.commit().await.unwrap();
        }
        assert!(looked_at.len() > 8, "{looked_at:#?}");
        close(db, left).await;
    }
}

/// The statements of this crate, as they stand in its source, without those that say that they look at many rows.
fn statements() -> Vec<String> {
    let (mut texts, mut macros) = (Vec::new(), 0);
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(path).unwrap();
            // Examples stand in the tests of the marks.
            let source = source.split("#[cfg(test)]").next().unwrap();
            for part in source.split("Statement::new(").skip(1) {
                match part.trim_start().strip_prefix('"') {
                    Some(text) => texts.push(text.split('"').next().unwrap().to_owned()),
                    None => macros += 1,
                }
            }
        }
    }
    // `expire_where!`, two `insert!` and the one that goes on with an instance put theirs together of parts.
    assert_eq!(macros, 4, "statements that are not looked at");
    texts
}

/// One row for the mark of a statement, and which parameter it is.
fn row_for(text: &str) -> Option<(usize, Rows)> {
    let (_, mark) = text.split_once("{rows:")?;
    let mut words = mark.split('}').next()?.split_whitespace();
    let at = words.next()?.parse().ok()?;
    let mut rows = Rows::default();
    rows.row();
    for word in words {
        if word.ends_with(":int") {
            rows.int(1);
        } else {
            rows.text("");
        }
    }
    Some((at, rows))
}

/// Tables that stay small, or an index of theirs that does, and what is not a table.
const SMALL: [&str; 14] = [
    "r",
    "s",
    "l",
    "t",
    "json_each",
    "CONSTANT ROW",
    "(subquery-1)",
    "_sqlx_migrations",
    "api_keys USING INDEX",
    "push_tokens",
    "audit_waiting",
    "w USING INDEX sqlite_autoindex_audit_waiting_1",
    "b USING INDEX batches_open",
    "batches USING INDEX batches_open",
];

#[tokio::test]
async fn sqlite_reads_no_growing_table_whole() {
    for (name, db, left) in databases("scans").await {
        if name == "postgres" {
            close(db, left).await;
            continue;
        }
        let mut tx = db.begin().await.unwrap();
        let all = statements();
        for text in &all {
            let values = row_for(text);
            let mut args = vec![Arg::Text("[]"); 24];
            if let Some((at, values)) = &values {
                args[at - 1] = Arg::Rows(values);
            }
            let explain = format!("EXPLAIN QUERY PLAN {text}");
            let explain: &'static Statement = Box::leak(Box::new(Statement::new(explain.leak())));
            for step in tx.fetch(explain, &args).await.unwrap() {
                let step = step.text("detail").unwrap();
                let scanned = step.strip_prefix("SCAN ");
                let small = |of: &str| {
                    let begins =
                        |small: &&str| of == *small || of.starts_with(&format!("{small} "));
                    SMALL.iter().any(begins)
                };
                assert!(scanned.is_none_or(small), "{step}\n{text}");
                assert!(!step.contains("AUTOMATIC"), "{step}\n{text}");
            }
        }
        assert!(all.len() > 200, "{}", all.len());
        tx.commit().await.unwrap();
        close(db, left).await;
    }
}
