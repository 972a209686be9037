#pragma once
/// hf:// places over a hub's HTTP: its API for documents, its resolver for files. The resolver
/// sends us to signed URLs of another host, which are kept and used until they are about to expire.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "weightmap/remote/http_origin.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::weightmap::remote {

struct HubOptions {
  Environment environment;  ///< HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HOME.
  std::function<std::int64_t()> wall_now_s;
};

class HubOrigin final : public HttpOrigin {
 public:
  explicit HubOrigin(HubOptions options) : options_(std::move(options)) {}

  Result<HttpHop> first_hop(const TransferRequest& request) override;
  ResponseVerdict judge(const HttpAnswer& answer) override;
  Result<std::optional<HttpHop>> after(const HttpAnswer& answer, const ResponseVerdict& verdict,
                                       std::string_view body) override;
  bool resolves(const HttpHop& hop) const override;

 private:
  /// Where a file's bytes really lie.
  struct Resolution {
    HttpHop hop;
    std::optional<ObjectInfo> info;   ///< What the hub says the file is.
    std::optional<std::string> etag;  ///< Of the first answer from there.
    std::int64_t refresh_at_s = 0;    ///< When to ask the hub again.
  };

  Result<void> configure();
  HttpHop hub_hop(const HubPlace& place, const TransferRequest& request) const;
  bool is_hub(const Uri& url) const { return url.origin() == endpoint_.origin(); }
  Result<void> keep(const HttpAnswer& answer, HttpHop next);
  Error refusal(const HubPlace& place, const HttpAnswer& answer, const Error& plain) const;

  const HubOptions options_;
  bool configured_ = false;
  Uri endpoint_;  // Without a slash at its end.
  std::string token_;
  std::map<std::string, Resolution> resolutions_;  // By the text of the file's hf:// place.
};

}  // namespace librarian::weightmap::remote
