#pragma once
/// What the AWS tools are told to use: from the environment, else from ~/.aws.

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/file_system.h"
#include "weightmap/remote/aws_signature.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// How a bucket stands in a URL: as part of the host, or as the path's first component.
enum class S3Addressing : std::uint8_t { automatic, host, path };

struct AwsSettings {
  std::optional<AwsCredentials> credentials;  ///< None: requests are not signed.
  std::string asker = "nobody";  ///< For messages: "profile 'x'", "the environment's credentials".
  std::string region;            ///< Empty: none is named.
  std::string endpoint_url;      ///< Empty: AWS itself.
  S3Addressing addressing = S3Addressing::automatic;
};

/// Reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION,
/// AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_IGNORE_CONFIGURED_ENDPOINT_URLS,
/// AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, and the two files; a variable wins over a file.
/// No credentials anywhere, or AWS_NO_SIGN_REQUEST=true: anonymous. Instance roles are not asked.
/// @error bad_input  says what to do and never holds a secret: half a key, no such profile, a file
///        that cannot be read, credentials that only a program or a sign-in can make.
Result<AwsSettings> read_aws_settings(const Environment& environment, FileSystem& files);

}  // namespace librarian::weightmap::remote
