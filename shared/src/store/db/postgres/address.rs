//! Where PostgreSQL is. The driver of the migrations reads the address, and the environment and password file that libpq reads too, and both drivers
//! understand the same by it.

use super::encryption::{Certificates, Encryption, Pem};
use super::wire::{Place, Way};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Error};
use std::path::Path;
use std::str::FromStr as _;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// Reads an address.
pub(super) fn read(url: &str) -> Result<PgConnectOptions, Error> {
    let options = PgConnectOptions::from_str(url)?;
    // A URL has an address of IPv6 in brackets (RFC 3986, 3.2.2); nobody who connects takes it so.
    let host = options.get_host().to_owned();
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => Ok(options.host(host)),
        None => Ok(options),
    }
}

/// The way to where these options say.
pub(super) fn way(options: &PgConnectOptions) -> Way {
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
    Way {
        place: place(options),
        encryption: Encryption {
            mode: options.get_ssl_mode(),
            certificates: secrets.certificates,
        },
        config,
    }
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
        let pem = |parameter| {
            let (_, value) = url.query_pairs().find(|(key, _)| key == parameter)?;
            // It calls a file so.
            let value = value.strip_prefix("file: ").unwrap_or(&value).to_owned();
            Some(Pem { parameter, value })
        };
        Self {
            password,
            certificates: Certificates {
                roots: pem("sslrootcert"),
                own: pem("sslcert"),
                key: pem("sslkey"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pem, Place, Secrets, place, read};

    #[test]
    fn what_an_address_says_arrives() {
        let options = read(
            "postgres://some%40body:p%2Fw%25@[::1]:5433/db?sslmode=verify-full&sslrootcert=/etc/a%20b.pem&sslcert=c&sslkey=k",
        )
        .unwrap();
        let secrets = Secrets::of(&options);
        assert_eq!(secrets.password.unwrap(), b"p/w%");
        let text = |pem: Pem| pem.value;
        assert_eq!(
            secrets.certificates.roots.map(text).unwrap(),
            "/etc/a b.pem"
        );
        assert_eq!(secrets.certificates.own.map(text).unwrap(), "c");
        assert_eq!(secrets.certificates.key.map(text).unwrap(), "k");
        assert!(matches!(place(&options), Place::Host(host, 5433) if host == "::1"));
    }

    #[test]
    fn a_folder_is_where_the_socket_is() {
        let options = read("postgres:///db?host=/var/run/postgresql").unwrap();
        let Place::Socket(path) = place(&options) else {
            panic!("no host");
        };
        assert!(path.starts_with("/var/run/postgresql/.s.PGSQL.5432"));
    }
}
