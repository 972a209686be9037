#pragma once
/// Were the tokens made for this model?

#include <optional>
#include <stop_token>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "ingest/token_file.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::ingest {

/// Writes the model's tokenizer.json to `path`.
/// @return  Whether the model has one.
/// @error unavailable | cancelled | io | no_space
Result<bool> save_tokenizer(weightmap::remote::Fetcher& fetcher, FileSystem& files,
                            const weightmap::remote::Uri& model, const std::string& path,
                            const std::stop_token& stop);

/// Compares what the token file says of its tokenizer with the model's tokenizer.json, and of its
/// chat template with chat_template.jinja, else tokenizer_config.json or chat_template.json. What
/// either side does not say is not compared; nothing is fetched for it.
/// @param path  Of the token file, for messages.
/// @return      A warning if the template is another one: people have reasons for that.
/// @error bad_input  The tokenizer is another one: the ids would mean other words.
/// @error unavailable | cancelled
Result<std::optional<std::string>> check_tokenizer(
    weightmap::remote::Fetcher& fetcher, Clock& clock, const weightmap::remote::Uri& model,
    const std::string& path, const TokenOrigin& origin, const std::stop_token& stop);

}  // namespace librarian::ingest
