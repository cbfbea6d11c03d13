//! Certificates of AWS: their trusted URLs and public keys.

use time::OffsetDateTime;
use x509_cert::{Certificate as X509, der::Decode};

/// A signing certificate of SNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    public_key: Vec<u8>,
    /// Seconds since the epoch: not before, not after.
    validity: (u64, u64),
}

impl Certificate {
    /// Parses a certificate in PEM.
    pub fn from_pem(text: &str) -> Option<Self> {
        let der = super::signature::from_pem(text, "CERTIFICATE")?;
        let read = X509::from_der(&der).ok()?.tbs_certificate;
        let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
        let public_key = read.subject_public_key_info.subject_public_key.as_bytes()?.to_vec();
        Some(Self { public_key, validity: (seconds(read.validity.not_before), seconds(read.validity.not_after)) })
    }

    /// Makes the certificate valid at any time, for tests with older vectors.
    #[cfg(test)]
    pub(super) fn valid_at_any_time(self) -> Self {
        Self { validity: (0, u64::MAX), ..self }
    }

    /// Returns the public key if the certificate is valid at `now`.
    pub(super) fn key_at(&self, now: OffsetDateTime) -> Option<&[u8]> {
        let now = u64::try_from(now.unix_timestamp()).ok()?;
        (self.validity.0 <= now && now <= self.validity.1).then_some(&self.public_key)
    }
}

/// Whether a certificate at this URL is from AWS: an SNS host over HTTPS, and a plain path to a `.pem` file.
pub(super) fn is_certificate_url(url: &str) -> bool {
    let path = aws_path(url).and_then(|path| path.strip_suffix(".pem"));
    path.is_some_and(|path| path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/')))
}

/// Whether this URL of AWS confirms a subscription.
pub(super) fn is_subscribe_url(url: &str) -> bool {
    aws_path(url).is_some_and(|path| path.starts_with("/?") && path.bytes().all(|b| b.is_ascii_graphic()))
}

/// Returns the path after `https://sns.<region>.amazonaws.com[.cn]`.
fn aws_path(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://sns.")?;
    let (host, _) = rest.split_once('/')?;
    let path = rest.get(host.len()..)?;
    let region = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (!region.is_empty() && region.bytes().all(plain)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sns_hosts_are_trusted() {
        let good = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123abc.pem";
        assert!(is_certificate_url(good));
        assert!(is_certificate_url("https://sns.cn-north-1.amazonaws.com.cn/SimpleNotificationService-0.pem"));
        for bad in [
            "http://sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com.evil.example/a.pem",
            "https://evil.example/sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com@evil.example/a.pem",
            "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
            "https://sns.evil.example#.amazonaws.com/a.pem",
            "https://sns.a.b.amazonaws.com/a.pem",
            "https://sns..amazonaws.com/a.pem",
            "https://bucket.s3.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com/a.pem?x",
            "https://sns.eu-west-1.amazonaws.com/../a.pem",
            "https://sns.eu-west-1.amazonaws.com/a",
            "",
        ] {
            assert!(!is_certificate_url(bad), "{bad}");
        }
        assert!(is_subscribe_url("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=1"));
        assert!(!is_subscribe_url("https://sns.eu-west-1.amazonaws.com.evil.example/?Action=ConfirmSubscription"));
        assert!(!is_subscribe_url("https://sns.eu-west-1.amazonaws.com/a b"));
    }
}
