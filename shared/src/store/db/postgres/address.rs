//! Where PostgreSQL is. The driver of the migrations reads the address, and the environment and password file that libpq reads too, and both drivers
//! understand the same by it.

use super::encryption::{self, Certificates, Pem};
use super::wire::{Place, Way};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Error};
use std::path::Path;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// The way to where these options say.
pub(super) fn way(options: &PgConnectOptions) -> Result<Way, Error> {
    let mode = options.get_ssl_mode();
    let secrets = Secrets::of(options);
    let mut config = Config::new();
    // What is encrypted is so before the server is told who we are.
    config
        .user(options.get_username())
        .ssl_mode(SslMode::Disable);
    if let Some(password) = secrets.password {
        config.password(password);
    }
    if let Some(database) = options.get_database() {
        config.dbname(database);
    }
    if let Some(name) = options.get_application_name() {
        config.application_name(name);
    }
    if let Some(options) = options.get_options() {
        config.options(options);
    }
    let encryption = encryption::of(mode, &secrets.certificates)
        .map_err(|error| Error::Configuration(Box::new(error)))?;
    Ok(Way {
        place: place(options),
        mode,
        encryption,
        config,
    })
}

fn place(options: &PgConnectOptions) -> Place {
    let (host, port) = (options.get_host(), options.get_port());
    let folder = options.get_socket().map(std::path::PathBuf::as_path);
    match folder.or_else(|| host.starts_with('/').then(|| Path::new(host))) {
        Some(folder) => Place::Socket(folder.join(format!(".s.PGSQL.{port}"))),
        None => Place::Host(host.to_owned(), port),
    }
}

/// What the options tell only as a part of an address.
struct Secrets {
    password: Option<Vec<u8>>,
    certificates: Certificates,
}

impl Secrets {
    fn of(options: &PgConnectOptions) -> Self {
        // Made from names that need no escapes, of which the other driver makes none.
        let url = options.clone().host("host").username("user").to_url_lossy();
        let password = url
            .password()
            .map(|password| percent_encoding::percent_decode_str(password).collect());
        let pem = |name: &str| {
            let (_, value) = url.query_pairs().find(|(key, _)| key == name)?;
            // It calls a file so.
            let value = value.strip_prefix("file: ").unwrap_or(&value);
            Some(Pem(value.to_owned()))
        };
        Self {
            password,
            certificates: Certificates {
                roots: pem("sslrootcert"),
                own: pem("sslcert").zip(pem("sslkey")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pem, Secrets};
    use sqlx::postgres::PgConnectOptions;
    use std::str::FromStr as _;

    #[test]
    fn what_an_address_says_arrives() {
        let options = PgConnectOptions::from_str(
            "postgres://some%40body:p%2Fw%25@[::1]:5433/db?sslmode=verify-full&sslrootcert=/etc/a%20b.pem&sslcert=c&sslkey=k",
        )
        .unwrap();
        let secrets = Secrets::of(&options);
        assert_eq!(secrets.password.unwrap(), b"p/w%");
        let text = |pem: Pem| pem.0;
        assert_eq!(
            secrets.certificates.roots.map(text).unwrap(),
            "/etc/a b.pem"
        );
        let (certificate, key) = secrets.certificates.own.unwrap();
        assert_eq!((text(certificate).as_str(), text(key).as_str()), ("c", "k"));
    }
}
