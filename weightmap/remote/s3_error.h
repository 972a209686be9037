#pragma once
/// What S3 says in the body of an error. Hostile input; pure functions.

#include <string>
#include <string_view>

namespace librarian::weightmap::remote {

/// Empty where the body does not say it in letters, digits, '-', '.' and '_', at most 64 of them:
/// both are safe in a message.
struct S3Error {
  std::string code;    ///< "NoSuchKey"
  std::string region;  ///< Where the bucket is, if the error is about that.
};

/// @param body  The first few KiB of an XML document; may be cut anywhere, or be anything else.
/// @source "Error responses", S3 API reference.
S3Error parse_s3_error(std::string_view body);

/// Another try later may succeed, whatever the status says.
bool is_passing_s3_error(std::string_view code);

}  // namespace librarian::weightmap::remote
