#pragma once
/// Where an object of S3 lies: s3://bucket/key, and the URL that it has over HTTP. Pure functions.

#include <string>
#include <string_view>

#include "base/error.h"
#include "weightmap/remote/aws_credentials.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// @param rest  What follows "s3://" : the bucket, and the key as it is, not percent-encoded.
/// @return      Its text is always "s3://bucket/key"; the key may be empty, or a directory's.
/// @error invalid_argument  no bucket's name, or a key that HTTP cannot carry.
/// @source "General purpose bucket naming rules" and "Object key naming guidelines", S3 user guide.
Result<Uri> s3_uri(std::string_view rest);

/// Of a Uri that s3_uri() made.
std::string_view s3_bucket(const Uri& uri);
std::string_view s3_key(const Uri& uri);

/// An object's address in one region.
struct S3Url {
  Uri url;
  std::string host;  ///< As it goes into the Host field.
  std::string path;  ///< From the first '/', percent-encoded.
};

/// @param region  As is_region_name() wants it; part of AWS's host names.
/// @error bad_input  the endpoint in `settings` is not the URL of one.
/// @error invalid_argument  `object` has no key.
Result<S3Url> s3_url(const Uri& object, const AwsSettings& settings, const std::string& region);

/// Letters, digits, '-' and '_' only: nothing that would make another host of AWS's.
bool is_region_name(std::string_view text);

}  // namespace librarian::weightmap::remote
