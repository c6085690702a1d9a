//! A batch of payments that one prompt asks for: each of them, and what the person is shown of all. The root in it stands for each payment
//! (`crate::payments`).

use super::profile::Payee;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How many payments one push asks for at most.
pub const MAX_PAYMENTS: usize = 1_000;
/// How many different payees they go to at most: the person is shown all of them, and has to read them.
pub const MAX_PAYEES: usize = 200;
/// How many currencies they are in at most: each makes a total of its own.
pub const MAX_CURRENCIES: usize = 20;
/// How many digits an amount has behind the point at most.
const DECIMALS: usize = 4;
const UNIT: u128 = 10_000;

/// One payment of a batch. Its RFC 8785 form is a leaf of the Merkle tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentItem {
    /// Decimal text.
    pub amount: String,
    /// ISO 4217.
    pub currency: String,
    /// To whom.
    pub payee: Payee,
    /// The sender's own name of it, which no other payment of the batch has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Decimal text, exact; it may have more digits than an amount may.
    pub amount: String,
    /// ISO 4217.
    pub currency: String,
}

/// What one payee gets of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayeeTotals {
    /// Who.
    pub payee: Payee,
    /// One for each currency.
    pub totals: Vec<Total>,
}

/// A batch of payments as it is shown and signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payments {
    /// How many payments; the size of the tree.
    pub count: u64,
    /// One for each currency, in the order of their codes.
    pub totals: Vec<Total>,
    /// All of them, in the order in which they first come. Another name or another account is another payee.
    pub payees: Vec<PayeeTotals>,
    /// The root of the tree over all payments in their order, base64url.
    pub root: String,
}

/// An exact sum: ten-thousandths, shown with as many decimals as the finest amount had.
#[derive(Default)]
struct Sum {
    units: u128,
    decimals: usize,
}

impl Sum {
    fn add(&mut self, amount: &str) -> Option<()> {
        let (whole, part) = amount.split_once('.').unwrap_or((amount, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || part.len() > DECIMALS || !digits(whole) || !digits(part) {
            return None;
        }
        let units: u128 = format!("{whole}{part:0<DECIMALS$}").parse().ok()?;
        self.units = self.units.checked_add(units)?;
        self.decimals = self.decimals.max(part.len());
        Some(())
    }

    fn text(&self) -> String {
        let mut text = (self.units / UNIT).to_string();
        if self.decimals > 0 {
            let part = format!("{:0DECIMALS$}", self.units % UNIT);
            text.push('.');
            text.push_str(&part[..self.decimals]);
        }
        text
    }
}

#[derive(Default)]
struct Sums<'a>(BTreeMap<&'a str, Sum>);

impl<'a> Sums<'a> {
    fn add(&mut self, item: &'a PaymentItem) -> Option<()> {
        self.0.entry(&item.currency).or_default().add(&item.amount)
    }

    fn totals(&self) -> Vec<Total> {
        let total = |(currency, sum): (&&str, &Sum)| Total {
            amount: sum.text(),
            currency: (*currency).to_owned(),
        };
        self.0.iter().map(total).collect()
    }
}

impl Payments {
    /// What is shown of `items`, whose tree has this root. `None` where an amount is none.
    pub fn of(items: &[PaymentItem], root: String) -> Option<Self> {
        let (mut all, mut payees) = (Sums::default(), Vec::<(&Payee, Sums<'_>)>::new());
        let mut places = BTreeMap::new();
        for item in items {
            all.add(item)?;
            let key = (&item.payee.name, &item.payee.account);
            let place = *places.entry(key).or_insert_with(|| {
                payees.push((&item.payee, Sums::default()));
                payees.len() - 1
            });
            payees.get_mut(place)?.1.add(item)?;
        }
        let payees = payees.iter().map(|(payee, sums)| PayeeTotals {
            payee: (*payee).clone(),
            totals: sums.totals(),
        });
        Some(Self {
            count: items.len() as u64,
            totals: all.totals(),
            payees: payees.collect(),
            root,
        })
    }

    /// Label and value, in the order of showing.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("Payments", self.count.to_string())];
        let total = |total: &Total| format!("{} {}", total.amount, total.currency);
        lines.extend(self.totals.iter().map(|one| ("Total", total(one))));
        lines.extend(self.payees.iter().map(|one| {
            let mut text = format!("{}, {}: ", one.payee.name, one.payee.account);
            for (n, part) in one.totals.iter().enumerate() {
                let joint = if n == 0 { "" } else { " and " };
                // Writing to a String cannot fail.
                write!(text, "{joint}{}", total(part)).ok();
            }
            ("To", text)
        }));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{PaymentItem, Payments, Total};
    use crate::domain::Payee;

    fn item(amount: &str, currency: &str, payee: &str) -> PaymentItem {
        PaymentItem {
            amount: amount.to_owned(),
            currency: currency.to_owned(),
            payee: Payee {
                name: payee.to_owned(),
                account: format!("IE-{payee}"),
            },
            reference: None,
        }
    }

    fn totals(items: &[PaymentItem]) -> Vec<(String, String)> {
        let shown = Payments::of(items, String::new()).unwrap();
        let pair = |one: Total| (one.amount, one.currency);
        shown.totals.into_iter().map(pair).collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(a, c): &(&str, &str)| ((*a).to_owned(), (*c).to_owned());
        of.iter().map(owned).collect()
    }

    #[test]
    fn must_32_totals_are_exact_and_of_each_currency() {
        // A float would say 0.30000000000000004.
        let thirds = [item("0.1", "EUR", "a"), item("0.2", "EUR", "a")];
        assert_eq!(totals(&thirds), pairs(&[("0.3", "EUR")]));
        let mixed = [
            item("12.50", "EUR", "a"),
            item("3", "CHF", "a"),
            item("0.0001", "EUR", "b"),
            item("1.5", "CHF", "b"),
        ];
        let all = pairs(&[("4.5", "CHF"), ("12.5001", "EUR")]);
        assert_eq!(totals(&mixed), all);
        // More digits than an amount may have.
        let large = vec![item("999999999999999.9999", "EUR", "a"); 1_000];
        assert_eq!(totals(&large), pairs(&[("999999999999999999.9000", "EUR")]));
        let carried = [item("0.05", "EUR", "a"), item("0.95", "EUR", "a")];
        assert_eq!(totals(&carried), pairs(&[("1.00", "EUR")]));
        for bad in ["", ".5", "1,5", "-1", "1.00000", "1e3", "1.2.3", "٣"] {
            let shown = Payments::of(&[item(bad, "EUR", "a")], String::new());
            assert_eq!(shown, None, "{bad}");
        }
    }

    #[test]
    fn must_32_every_payee_is_shown_once_with_their_part() {
        let items = [
            item("1.00", "EUR", "zoe"),
            item("2.00", "EUR", "ada"),
            item("0.50", "EUR", "zoe"),
            item("7", "CHF", "zoe"),
        ];
        let shown = Payments::of(&items, "root".to_owned()).unwrap();
        assert_eq!((shown.count, shown.payees.len()), (4, 2));
        assert_eq!(
            shown.lines(),
            [
                ("Payments", "4".to_owned()),
                ("Total", "7 CHF".to_owned()),
                ("Total", "3.50 EUR".to_owned()),
                ("To", "zoe, IE-zoe: 7 CHF and 1.50 EUR".to_owned()),
                ("To", "ada, IE-ada: 2.00 EUR".to_owned()),
            ]
        );
        // The same name at another account is somebody else.
        let mut twice = items.to_vec();
        twice[2].payee.account = "IE-other".to_owned();
        let shown = Payments::of(&twice, String::new()).unwrap();
        assert_eq!(shown.payees.len(), 3);
    }
}
