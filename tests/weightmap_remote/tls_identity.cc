#include "tls_identity.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>

#include "base/error.h"

namespace librarian::weightmap::remote::testing {
namespace {

using Extension = std::unique_ptr<X509_EXTENSION, OpenSslFree<X509_EXTENSION, X509_EXTENSION_free>>;

void add_extension(X509* certificate, int kind, const std::string& value) {
  const Extension extension(X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str()));
  LIB_CHECK(extension != nullptr);
  LIB_CHECK(X509_add_ext(certificate, extension.get(), -1) == 1);
}

// Unsigned, issued by nobody yet.
TlsIdentity draft(const char* subject_name, TlsValidity validity) {
  static std::atomic<long> serial = 0;
  TlsIdentity identity{TlsKey(EVP_EC_gen("P-256")), TlsCertificate(X509_new())};
  X509* certificate = identity.certificate.get();
  X509_set_version(certificate, 2);  // Counted from 0: this is version 3.
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), validity.from_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate), validity.until_s);
  X509_set_pubkey(certificate, identity.key.get());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(subject_name), -1, -1, 0);
  return identity;
}

void sign(const TlsIdentity& identity, const TlsIdentity& authority) {
  X509_set_issuer_name(identity.certificate.get(),
                       X509_get_subject_name(authority.certificate.get()));
  LIB_CHECK(X509_sign(identity.certificate.get(), authority.key.get(), EVP_sha256()) > 0);
}

}  // namespace

TlsIdentity make_self_signed(const std::string& name) {
  TlsIdentity identity = draft("librarian test", {});
  add_extension(identity.certificate.get(), NID_subject_alt_name, name);
  sign(identity, identity);
  return identity;
}

TlsIdentity make_authority(const std::string& name) {
  TlsIdentity authority = draft(name.c_str(), {});
  add_extension(authority.certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  add_extension(authority.certificate.get(), NID_key_usage, "critical,keyCertSign");
  sign(authority, authority);
  return authority;
}

TlsIdentity issue(const TlsIdentity& authority, const std::string& name, TlsValidity validity) {
  TlsIdentity identity = draft("librarian test server", validity);
  add_extension(identity.certificate.get(), NID_subject_alt_name, name);
  sign(identity, authority);
  return identity;
}

std::string pem(const TlsIdentity& identity) {
  const std::unique_ptr<BIO, OpenSslFree<BIO, BIO_free_all>> memory(BIO_new(BIO_s_mem()));
  LIB_CHECK(PEM_write_bio_X509(memory.get(), identity.certificate.get()) == 1);
  char* text = nullptr;
  const long bytes = BIO_get_mem_data(memory.get(), &text);
  return {text, static_cast<std::size_t>(bytes)};
}

}  // namespace librarian::weightmap::remote::testing
