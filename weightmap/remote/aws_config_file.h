#pragma once
/// The format of ~/.aws/credentials and ~/.aws/config. Pure functions.
/// @source "Shared config and credentials files" in the AWS SDKs and Tools reference guide.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/error.h"

namespace librarian::weightmap::remote {

constexpr std::uint64_t kAwsConfigFileBytesMax = 1U << 20U;

/// Section -> setting -> value. Sections as written between the brackets, spaces and quotes made
/// uniform ("profile x"); settings in lower case, nested ones as "s3.endpoint_url".
using AwsConfigFile = std::map<std::string, std::map<std::string, std::string>>;

/// A section or a setting that comes twice is merged; the later value holds.
/// @error bad_input  names the line, never what is in it: it may be a secret.
Result<AwsConfigFile> parse_aws_config_file(std::string_view text);

}  // namespace librarian::weightmap::remote
