//! A database of its own for each test, on both engines. `scripts/test` provides PostgreSQL.

use shared::crypto::{DeviceKey, random_text};
use shared::domain::Provider;
use shared::id::MessageId;
use shared::secret::Secret;
use shared::store::{Address, Db, NewDevice};

/// What a test leaves behind, to be removed at its end.
pub(crate) enum Left {
    Folder(std::path::PathBuf),
    Schema(sqlx::PgPool, String),
}

/// A database of its own for one test: a fresh file, or a fresh schema.
pub(crate) async fn databases(test: &str) -> Vec<(&'static str, Db, Left)> {
    let unique = MessageId::fresh(0).to_string();
    let folder = std::env::temp_dir().join(format!("countersign-{test}-{unique}"));
    std::fs::create_dir_all(&folder).unwrap();
    let lite = Db::open(&format!("sqlite:{}", folder.join("db.sqlite").display()))
        .await
        .unwrap();
    let mut all = vec![("sqlite", lite, Left::Folder(folder))];
    match std::env::var("COUNTERSIGN_TEST_DATABASE_URL") {
        Ok(url) => {
            let admin = sqlx::PgPool::connect(&url).await.unwrap();
            let schema = format!("t_{unique}");
            sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
                .execute(&admin)
                .await
                .unwrap();
            let joint = if url.contains('?') { '&' } else { '?' };
            let db = Db::open(&format!("{url}{joint}options=-csearch_path%3D{schema}"))
                .await
                .unwrap();
            all.push(("postgres", db, Left::Schema(admin, schema)));
        }
        Err(_) => assert!(
            std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok(),
            "no PostgreSQL: run scripts/test, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1 to leave it out"
        ),
    }
    for (_, db, _) in &all {
        db.migrate().await.unwrap();
    }
    all
}

/// The same on PostgreSQL alone, where there is one.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) async fn postgres(test: &str) -> Option<(Db, Left)> {
    let mut found = None;
    for (name, db, left) in databases(test).await {
        if name == "postgres" {
            found = Some((db, left));
        } else {
            close(db, left).await;
        }
    }
    found
}

pub(crate) async fn close(db: Db, left: Left) {
    db.close().await;
    match left {
        Left::Folder(folder) => std::fs::remove_dir_all(folder).unwrap(),
        Left::Schema(admin, schema) => {
            let drop = sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"));
            sqlx::query(drop).execute(&admin).await.unwrap();
            admin.close().await;
        }
    }
}

/// A key of the right form that nobody signs with.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) fn key() -> DeviceKey {
    DeviceKey {
        kty: "EC".to_owned(),
        crv: "P-256".to_owned(),
        x: random_text::<32>(),
        y: Some(random_text::<32>()),
    }
}

/// A phone of the relying party `payroll`, which is woken at this token of APNs.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) fn phone(token: Option<&str>) -> NewDevice {
    NewDevice {
        rp: "payroll".to_owned(),
        name: "Ada's phone".to_owned(),
        platform: "ios".to_owned(),
        key: key(),
        address: token.map(|token| Address {
            provider: Provider::Apns,
            token: Secret::new(token),
        }),
    }
}
