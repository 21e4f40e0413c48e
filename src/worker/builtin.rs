//! The methods that fdpassd ships.

use serde_json::value::RawValue;

use super::reply::{Call, Fault, Reply};

/// Returns the params unchanged, byte for byte: the method `ping`.
pub(crate) fn ping(params: &RawValue, out: &mut Reply<'_>) -> Result<(), Fault> {
    out.raw(params)
}

/// The name of the method that shows what one of a daemon's own looks like.
pub(super) const DEMONSTRATION: &str = "pi";

/// The most terms that `pi` sums up: some seconds of work.
const MAX_TERMS: u64 = 1_000_000_000;

/// Returns √(8·Σ 1/(2i+1)²) over the first `n` terms, as public clients of this protocol expect of the method `pi`.
pub(crate) fn pi(n: u64) -> Result<f64, Fault> {
    if n > MAX_TERMS {
        return Err(Fault::bad_params(format!("n is at most {MAX_TERMS}")));
    }
    let sum: f64 = (0..n)
        .map(|i| (2 * i + 1) as f64)
        .fold(0.0, |sum, odd| sum + 1.0 / (odd * odd));
    Ok((8.0 * sum).sqrt())
}

/// Calls [`pi`] as a method.
pub(crate) fn pi_method<S>(_: &mut S, n: u64, _: &Call) -> Result<f64, Fault> {
    pi(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pi_has_the_values_that_public_clients_expect() {
        // -0.0 would be written with its sign.
        assert!(pi(0).is_ok_and(|pi| pi == 0.0 && pi.is_sign_positive()));
        assert!((pi(1).expect("n") - 8f64.sqrt()).abs() < 1e-12);
        assert!((pi(1_000_000).expect("n") - std::f64::consts::PI).abs() < 1e-6);
        assert_eq!(
            pi(MAX_TERMS + 1).expect_err("too many").code(),
            "bad_params"
        );
    }
}
