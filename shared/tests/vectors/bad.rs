//! Bad signatures and bad forms, after the manner of Wycheproof: each is refused, but for those that say `holds`.

#![expect(clippy::too_many_lines, reason = "lists of cases")]

use crate::keys::{Key, Keys, b64};
use crate::made::{DEVICE, PROOF, expected, good, header};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::scalar::Scalar;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

/// The order of P-256, big-endian (SEC 2, 2.4.2).
const N: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
/// The order of Ed25519's group, little-endian (RFC 8032, 5.1).
const L: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// `a + b` and `a - b`, both big-endian, without what does not fit.
fn sum(a: &[u8], b: &[u8], subtract: bool) -> Vec<u8> {
    let (mut out, mut carry) = (vec![0_u8; a.len()], 0_i16);
    for at in (0..a.len()).rev() {
        let b = i16::from(b[at]);
        let digit = i16::from(a[at]) + carry + if subtract { -b } else { b };
        out[at] = digit.rem_euclid(256) as u8;
        carry = digit.div_euclid(256);
    }
    out
}

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

/// DER of an ECDSA signature.
fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |part: &[u8]| {
        let digits: Vec<u8> = part.iter().copied().skip_while(|b| *b == 0).collect();
        let sign = if digits[0] > 127 { vec![0] } else { Vec::new() };
        let body = [sign, digits].concat();
        [vec![2, body.len() as u8], body].concat()
    };
    let body = [integer(&signature[..32]), integer(&signature[32..])].concat();
    [vec![0x30, body.len() as u8], body].concat()
}

struct Set(Vec<Value>);

impl Set {
    fn add(&mut self, name: &str, alg: &str, key: &Value, proof: &str, holds: bool) {
        let verdict = if holds { "holds" } else { "refused" };
        self.0.push(json!({"name": format!("{alg}: {name}"), "alg": alg, "key": key, "expected": expected(false), "proof": proof, "verdict": verdict}));
    }
}

/// What is wrong with the signature's bytes, for either algorithm.
fn bytes(own: &Key, set: &mut Set) {
    let (head, claims) = good(own);
    let held = own.sign(&head, &claims);
    let (signed, signature) = held.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (r, s) = signature.split_at(32);
    let zero = [0_u8; 32];
    let mut all = vec![
        ("empty", vec![]),
        ("truncated by a byte", signature[..63].to_vec()),
        ("half", r.to_vec()),
        ("extended by a zero", [&signature[..], &[0]].concat()),
        ("with a zero before it", [&[0], &signature[..]].concat()),
        ("twice", [&signature[..], &signature[..]].concat()),
        ("all zero", vec![0; 64]),
        ("all ff", vec![0xff; 64]),
        ("one bit changed", {
            let mut one = signature.clone();
            one[40] ^= 1;
            one
        }),
        ("the halves exchanged", [s, r].concat()),
        ("the first half zero", [&zero, s].concat()),
        ("the second half zero", [r, &zero].concat()),
    ];
    if own.alg() == "ES256" {
        let one = {
            let mut one = zero;
            one[31] = 1;
            one
        };
        all.extend([
            ("in DER", der(&signature)),
            ("r = n", [&N[..], s].concat()),
            ("s = n", [r, &N[..]].concat()),
            ("both n", [&N[..], &N[..]].concat()),
            ("r = s = 1", [&one[..], &one[..]].concat()),
            (
                "r = n - 1, s = 1",
                [sum(&N, &one, true), one.to_vec()].concat(),
            ),
            ("-r", [sum(&N, r, true), s.to_vec()].concat()),
            (
                "r + n, in 33 bytes",
                [vec![1], sum(r, &N, false), vec![0], s.to_vec()].concat(),
            ),
        ]);
    } else {
        let more = |times: usize| {
            let l = reversed(&L);
            let s = (0..times).fold(reversed(s), |s, _| sum(&s, &l, false));
            [r.to_vec(), reversed(&s)].concat()
        };
        all.extend([
            ("S + L", more(1)),
            ("S + 2 L", more(2)),
            ("S = L", [r, &L[..]].concat()),
            (
                "-S",
                [
                    r.to_vec(),
                    reversed(&sum(&reversed(&L), &reversed(s), true)),
                ]
                .concat(),
            ),
            ("the sign of R changed", {
                let mut one = signature.clone();
                one[31] ^= 0x80;
                one
            }),
        ]);
    }
    for (name, bad) in all {
        set.add(
            name,
            own.alg(),
            &own.jwk(),
            &format!("{signed}.{}", b64(bad)),
            false,
        );
    }
    if own.alg() == "ES256" {
        // A second form of the same signature. Phones' keystores make either, so both hold; the push's state judges copies, not their bytes.
        let twin = [r.to_vec(), sum(&N, s, true)].concat();
        let twin = format!("{signed}.{}", b64(twin));
        set.add(
            "n - s: the same signature once more",
            own.alg(),
            &own.jwk(),
            &twin,
            true,
        );
    }
}

/// What is wrong with the text around the signature.
fn forms(own: &Key, stranger: &Key, other: &Key, set: &mut Set) {
    let (head, claims) = good(own);
    let held = own.sign(&head, &claims);
    let parts: Vec<&str> = held.split('.').collect();
    let (h, c, s) = (parts[0], parts[1], parts[2]);
    let headed = |head: &str| own.sign(head, &claims);
    let with = |name: &str, value: Value| {
        let mut head: Value = serde_json::from_str(&head).unwrap();
        head[name] = value;
        own.sign(&head.to_string(), &claims)
    };
    let twice = |text: &str, member: &str| text.replacen('{', &format!("{{{member},"), 1);
    let stray = |part: &str| {
        // The last of 43 or 86 characters has bits to spare.
        let (rest, last) = part.split_at(part.len() - 1);
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let at = alphabet
            .iter()
            .position(|b| *b == last.as_bytes()[0])
            .unwrap();
        format!("{rest}{}", char::from(alphabet[at + 1]))
    };
    let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, own.jwk().to_string().as_bytes());
    let hs256 = format!("{}.{c}", b64(header("HS256", PROOF, DEVICE)));
    let raw = URL_SAFE_NO_PAD
        .decode(own.jwk()["x"].as_str().unwrap())
        .unwrap();
    let raw_key = hmac::Key::new(hmac::HMAC_SHA256, &raw);
    let mac = |key: &hmac::Key| format!("{hs256}.{}", b64(hmac::sign(key, hs256.as_bytes())));
    let none = b64(header("none", PROOF, DEVICE));
    let nested = own.sign(&head, &json!(held).to_string());
    let all = [
        ("alg none without a signature", format!("{none}.{c}.")),
        ("alg none with one", format!("{none}.{c}.{s}")),
        ("HS256 with the JWK as the secret", mac(&hmac_key)),
        ("HS256 with the key's bytes as the secret", mac(&raw_key)),
        (
            "the other algorithm in the header",
            headed(&header(other.alg(), PROOF, DEVICE)),
        ),
        (
            "the other algorithm and its own signature",
            other.sign(&header(other.alg(), PROOF, DEVICE), &claims),
        ),
        (
            "the algorithm in lower case",
            headed(&header(&own.alg().to_lowercase(), PROOF, DEVICE)),
        ),
        ("a stranger's signature", stranger.sign(&head, &claims)),
        (
            "a stranger's key brought along",
            with("jwk", stranger.jwk()),
        ),
        ("its own key brought along", with("jwk", own.jwk())),
        (
            "a key to be fetched",
            with("jku", json!("https://evil.example/jwks")),
        ),
        ("crit", with("crit", json!(["exp"]))),
        ("b64 false", with("b64", json!(false))),
        ("cty JWT", with("cty", json!("JWT"))),
        (
            "no typ",
            headed(&json!({"alg": own.alg(), "kid": DEVICE}).to_string()),
        ),
        ("typ JWT", headed(&header(own.alg(), "JWT", DEVICE))),
        (
            "typ of an enrolment",
            headed(&header(own.alg(), "countersign-enrolment+jwt", DEVICE)),
        ),
        (
            "no kid",
            headed(&json!({"alg": own.alg(), "typ": PROOF}).to_string()),
        ),
        (
            "a header that is a list",
            headed(&json!([own.alg(), PROOF, DEVICE]).to_string()),
        ),
        ("claims that are a list", own.sign(&head, "[1]")),
        ("claims that are no JSON", own.sign(&head, "approve")),
        ("no claims", own.sign(&head, "")),
        ("a JWS in a JWS", nested),
        ("alg twice", headed(&twice(&head, "\"alg\":\"none\""))),
        (
            "decision twice",
            own.sign(&head, &twice(&claims, "\"decision\":\"deny\"")),
        ),
        (
            "more after the claims",
            own.sign(&head, &format!("{claims}{{}}")),
        ),
        (
            "claims in UTF-16",
            own.sign(&head, &claims.replace('{', "\u{feff}{")),
        ),
        ("a nest of 10,000 lists", own.sign(&head, &"[".repeat(1000))),
        (
            "longer than any text of ours",
            own.sign(
                &head,
                &claims.replacen('{', &format!("{{{}", " ".repeat(3000)), 1),
            ),
        ),
        ("an empty text", String::new()),
        ("dots", ".".repeat(4000)),
        ("one part", h.to_owned()),
        ("two parts", format!("{h}.{c}")),
        ("four parts", format!("{held}.{s}")),
        ("a dot before", format!(".{held}")),
        ("a dot behind", format!("{held}.")),
        (
            "five parts, as if encrypted",
            format!("{h}.{s}.{s}.{c}.{s}"),
        ),
        ("a space before", format!(" {held}")),
        ("a line break behind", format!("{held}\n")),
        ("a line break within", format!("{h}.{c}.\n{s}")),
        (
            "padding",
            format!(
                "{h}.{c}.{}",
                URL_SAFE.encode(URL_SAFE_NO_PAD.decode(s).unwrap())
            ),
        ),
        (
            "stray bits behind the signature",
            format!("{h}.{c}.{}", stray(s)),
        ),
        (
            "a character of plain base64",
            format!("{h}.{c}.+{}", &s[1..]),
        ),
        ("a slash", format!("{h}.{c}./{}", &s[1..])),
        ("a character outside ASCII", format!("{h}.{c}.é{}", &s[2..])),
        ("percent encoding", held.replace('.', "%2E")),
        (
            "the JSON form",
            json!({"protected": h, "payload": c, "signature": s}).to_string(),
        ),
        ("the signature of other claims", {
            let deny = own.sign(&head, "{}");
            format!("{h}.{c}.{}", deny.rsplit_once('.').unwrap().1)
        }),
    ];
    for (name, proof) in all {
        set.add(name, own.alg(), &own.jwk(), &proof, false);
    }
}

/// A signature (r, 1), under a key that was made to fit it, and the same with n added to s, which then still has 32 bytes.
fn small_s(set: &mut Set) {
    let key = json!({"kty": "EC", "crv": "P-256", "x": "2ooJIy0gV5eKq2f7Od7GjYdqht_0JTeDEO_6ZOILbiY", "y": "zV0simo_Y9h4TLGV7FAE4pWuw4JASXKq20CvpgNC7C4"});
    set.add("s = 1", "ES256", &key, "eyJhbGciOiJFUzI1NiIsInR5cCI6ImNvdW50ZXJzaWduLXByb29mK2p3dCIsImtpZCI6ImRldl8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSJ9.eyJ2ZXIiOjEsImlzcyI6ImRldl8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsImF1ZCI6InN0b18wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsInN1YiI6InBzaF8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsImp0aSI6Imp0aS1vZi1hLXRlc3QtdmVjdG9yIiwiaWF0IjoxNzYzOTg1NjAwLCJub25jZSI6ImJtOXVZMlVnYjJZZ1lTQjBaWE4wSUhabFkzUnZjZyIsImRlY2lzaW9uIjoiYXBwcm92ZSIsImtpbmQiOiJjb25maXJtIiwiY29udGVudF9oYXNoIjoid3MyUWlpbGZKYlRtakhlQVVsX0t6TVJzc2JET0l1aGpsQmFkYkpBWXFPZyIsInV2IjoiZGV2aWNlIn0.nCVQuRXrUct1SkMqn7fubUoN38hN2UlglF96Ic-tf6cAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQ", true);
    set.add("s + n, in 32 bytes", "ES256", &key, "eyJhbGciOiJFUzI1NiIsInR5cCI6ImNvdW50ZXJzaWduLXByb29mK2p3dCIsImtpZCI6ImRldl8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSJ9.eyJ2ZXIiOjEsImlzcyI6ImRldl8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsImF1ZCI6InN0b18wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsInN1YiI6InBzaF8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMSIsImp0aSI6Imp0aS1vZi1hLXRlc3QtdmVjdG9yIiwiaWF0IjoxNzYzOTg1NjAwLCJub25jZSI6ImJtOXVZMlVnYjJZZ1lTQjBaWE4wSUhabFkzUnZjZyIsImRlY2lzaW9uIjoiYXBwcm92ZSIsImtpbmQiOiJjb25maXJtIiwiY29udGVudF9oYXNoIjoid3MyUWlpbGZKYlRtakhlQVVsX0t6TVJzc2JET0l1aGpsQmFkYkpBWXFPZyIsInV2IjoiZGV2aWNlIn0.nCVQuRXrUct1SkMqn7fubUoN38hN2UlglF96Ic-tf6f_____AAAAAP__________vOb6racXnoTzucrC_GMlUg", false);
}

/// Points of small order: with the identity as the key, anything that is signed with R = identity and S = 0 verifies by the equation alone.
fn small_order(own: &Key, set: &mut Set) -> Vec<Value> {
    let (head, claims) = good(own);
    let signed = format!("{}.{}", b64(&head), b64(&claims));
    let mut refused = Vec::new();
    for (n, point) in EIGHT_TORSION.iter().enumerate() {
        let public = point.compress().to_bytes();
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(public)});
        let signature = [EIGHT_TORSION[0].compress().to_bytes(), [0; 32]].concat();
        if n == 0 {
            let lax = UnparsedPublicKey::new(&ED25519, public);
            assert!(
                lax.verify(signed.as_bytes(), &signature).is_ok(),
                "or it shows nothing"
            );
        }
        let proof = format!("{signed}.{}", b64(signature));
        set.add(
            &format!("a key of small order, {n}"),
            "EdDSA",
            &key,
            &proof,
            false,
        );
        refused.push(json!({"name": format!("Ed25519, small order, {n}"), "key": key}));
    }
    // Whoever holds the key can make one with R = identity: S = k a.
    let seed = URL_SAFE_NO_PAD
        .decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
        .unwrap();
    let mut a: [u8; 32] = Sha512::digest(seed)[..32].try_into().unwrap();
    a[0] &= 0xf8;
    a[31] = (a[31] & 0x7f) | 0x40;
    let public = URL_SAFE_NO_PAD
        .decode(own.jwk()["x"].as_str().unwrap())
        .unwrap();
    let r = EIGHT_TORSION[0].compress().to_bytes();
    let digest = Sha512::new()
        .chain_update(r)
        .chain_update(&public)
        .chain_update(&signed);
    let k = Scalar::from_bytes_mod_order_wide(&digest.finalize().into());
    let s = k * Scalar::from_bytes_mod_order(a);
    let signature = [r, s.to_bytes()].concat();
    let lax = UnparsedPublicKey::new(&ED25519, public);
    assert!(
        lax.verify(signed.as_bytes(), &signature).is_ok(),
        "or it shows nothing"
    );
    set.add(
        "R of small order",
        "EdDSA",
        &own.jwk(),
        &format!("{signed}.{}", b64(signature)),
        false,
    );
    refused
}

/// Keys that are none.
fn no_points(keys: &Keys) -> Vec<Value> {
    let (p256, ed25519) = (keys.0[0].0.jwk(), keys.0[1].0.jwk());
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    // p and p + 1 in place of 0 and 1; y = 2 is on no point.
    let ed = |first: u8, rest: u8, last: u8| {
        let mut bytes = [rest; 32];
        (bytes[0], bytes[31]) = (first, last);
        with(&ed25519, "x", json!(b64(bytes)))
    };
    [
        ("P-256, not on the curve", with(&p256, "x", p256["y"].clone())),
        ("P-256, zero", with(&with(&p256, "x", json!(b64([0; 32]))), "y", json!(b64([0; 32])))),
        ("P-256, coordinates above the field", with(&p256, "x", json!(b64([0xff; 32])))),
        ("P-256, short", with(&p256, "x", json!(b64([1; 31])))),
        ("P-256 under the name of P-384", with(&p256, "crv", json!("P-384"))),
        ("secp256k1's generator", json!({"kty": "EC", "crv": "P-256", "x": "eb5mfvncu6xVoGKVzocLBwKb_NstzijZWfKBWxb4F5g", "y": "SDradyajxGVdpPv8DhEIqP0XtEimhVQZnEfQj_sQ1Lg"})),
        ("Ed25519, y = p", ed(0xed, 0xff, 0x7f)),
        ("Ed25519, y = p + 1", ed(0xee, 0xff, 0x7f)),
        ("Ed25519, y = 2", ed(2, 0, 0)),
        ("Ed25519 with a y", with(&ed25519, "y", p256["y"].clone())),
        ("Ed25519 under the name of X25519", with(&ed25519, "crv", json!("X25519"))),
        ("Ed25519, long", with(&ed25519, "x", json!(b64([9; 33])))),
    ]
    .into_iter()
    .map(|(name, key)| json!({"name": name, "key": key}))
    .collect()
}

pub(crate) fn signatures(keys: &Keys) -> Value {
    let mut set = Set(Vec::new());
    let [(p256, p256_stranger), (ed25519, ed25519_stranger)] = &keys.0;
    for (own, stranger, other) in [
        (p256, p256_stranger, ed25519),
        (ed25519, ed25519_stranger, p256),
    ] {
        bytes(own, &mut set);
        forms(own, stranger, other, &mut set);
    }
    small_s(&mut set);
    let mut refused = small_order(ed25519, &mut set);
    refused.extend(no_points(keys));
    json!({"about": "Signatures and forms that a verifier must refuse, but for those that say `holds`; and public keys that must not be registered.",
        "vectors": set.0, "keys_refused": refused})
}
