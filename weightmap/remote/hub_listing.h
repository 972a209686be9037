#pragma once
/// Which files a model on a hub has, as the hub's API lists them.

#include <cstdint>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/error.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

struct HubListedFile {
  std::uint64_t size = 0;  ///< Bytes of the file itself, not of its LFS pointer.
  std::string sha256;      ///< 64 lower-case hex digits; empty: the hub keeps it without LFS.
  bool operator==(const HubListedFile&) const = default;
};
/// By path in the repository.
using HubListing = std::map<std::string, HubListedFile>;

/// Adds the files of one page of the answer.
/// @error bad_input  Not such a page, or a file that is listed twice.
Result<void> add_hub_page(std::string_view json, const std::string& what, HubListing& listing);

/// What to ask for the page behind the one whose answer has this Link field: the value of `cursor`,
/// still percent-encoded. Only the value is taken, so a next page can lie nowhere else than the
/// first. None: that was the last page.
/// @error bad_input  There is one, and no telling how to ask for it.
/// @source RFC 8288 3.
Result<std::optional<std::string>> next_hub_page(std::string_view link);

/// Asks the hub, page by page, for the files of `model`, an hf:// place at a commit.
/// @return  None where the hub (a mirror, say) has no such list; why is logged.
/// @error cancelled
Result<std::optional<HubListing>> list_hub_files(Fetcher& fetcher, const Uri& model,
                                                 const std::stop_token& stop);

/// Whether the hub's answer for a file is what its list says, which another answer may not be that
/// says the same of itself. Takes the digest from the list where the answer has none.
/// @error source_changed
Result<void> check_against_listing(const HubListedFile& listed, ObjectInfo& info);

}  // namespace librarian::weightmap::remote
