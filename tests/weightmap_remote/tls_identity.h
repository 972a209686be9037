#pragma once
/// Keys and certificates made for a test: no files to keep fresh, none that anybody else trusts.

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

namespace librarian::weightmap::remote::testing {

template <typename Handle, void (*Free)(Handle*)>
struct OpenSslFree {
  void operator()(Handle* handle) const noexcept { Free(handle); }
};
using TlsKey = std::unique_ptr<EVP_PKEY, OpenSslFree<EVP_PKEY, EVP_PKEY_free>>;
using TlsCertificate = std::unique_ptr<X509, OpenSslFree<X509, X509_free>>;

struct TlsIdentity {
  TlsKey key;
  TlsCertificate certificate;
};

/// When a certificate is valid, in seconds from now.
struct TlsValidity {
  long from_s = -3600;
  long until_s = 3600;
};

/// @param name  Subject alternative name, e.g. "IP:127.0.0.1".
TlsIdentity make_self_signed(const std::string& name);
/// May sign others; is no server itself.
TlsIdentity make_authority(const std::string& name = "librarian test authority");
TlsIdentity issue(const TlsIdentity& authority, const std::string& name, TlsValidity validity = {});

/// The certificate as PEM.
std::string pem(const TlsIdentity& identity);

}  // namespace librarian::weightmap::remote::testing
