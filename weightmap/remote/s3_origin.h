#pragma once
/// s3://bucket/key: objects of S3 and of stores that speak its protocol.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/file_system.h"
#include "weightmap/remote/aws_credentials.h"
#include "weightmap/remote/http_origin.h"
#include "weightmap/remote/s3_error.h"

namespace librarian::weightmap::remote {

struct S3Options {
  Environment environment;                   ///< See read_aws_settings().
  bool insecure_http = false;                ///< As in TransportOptions, for the endpoint.
  std::function<std::int64_t()> wall_now_s;  ///< Unix time.
  FileSystem* files = &posix_file_system();  ///< Holds ~/.aws; must outlive the origin.
};

/// Signs for the region where a bucket turns out to be and for the time that the server goes by,
/// and reads the credentials anew when the server no longer takes them. What it learns holds for
/// all later requests. Not thread-safe.
class S3Origin final : public HttpOrigin {
 public:
  /// Reads nothing yet: the settings are read with the first request. Weight files are asked about
  /// with HEAD before they are opened: only there a store states checksums of whole objects.
  explicit S3Origin(S3Options options) : options_(std::move(options)) {}

  /// @error bad_input | invalid_argument  as read_aws_settings(), s3_url() and check_allowed().
  Result<HttpHop> first_hop(const TransferRequest& request) override;

  /// As check_response(), and: no redirect is followed, only what carries an ETag is an object,
  /// and checksums of the whole object become its digests.
  ResponseVerdict judge(const HttpAnswer& answer) override;

  /// @error bad_input  not readable with these credentials, or no such bucket; says what to do.
  Result<std::optional<HttpHop>> after(const HttpAnswer& answer, const ResponseVerdict& verdict,
                                       std::string_view body) override;

 private:
  using MaybeHop = std::optional<HttpHop>;

  Result<HttpHop> hop_at(const TransferRequest& request, std::int64_t time_s,
                         bool head_only = false) const;
  void learn_digests(const HttpAnswer& answer);
  Result<MaybeHop> again_if_changed(const HttpAnswer& answer) const;
  Result<MaybeHop> again_in(const std::string& region, const HttpAnswer& answer);
  Result<MaybeHop> again_at_server_time(const HttpAnswer& answer);
  Error refused(int status, const std::string& code, const Error& verdict) const;
  std::int64_t signing_time_s() const { return options_.wall_now_s() + clock_offset_s_; }

  const S3Options options_;
  std::optional<AwsSettings> settings_;
  std::map<std::string, std::string, std::less<>> region_of_bucket_;  // As servers said.
  std::int64_t clock_offset_s_ = 0;  // The server's clock less ours.
  // What HEAD said of objects, by the text of their places; an answer to a range says it of the
  // range, if at all.
  std::map<std::string, ObjectInfo, std::less<>> stated_;
};

/// @param options  `wall_now_s` and `environment` must be set.
std::unique_ptr<HttpOrigin> make_s3_origin(S3Options options);

}  // namespace librarian::weightmap::remote
