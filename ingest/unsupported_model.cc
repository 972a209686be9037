#include "ingest/unsupported_model.h"

#include <utility>

#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/hub_revision.h"

namespace librarian::ingest {
namespace {

/// The first name in quotes: of a key, or of a tensor.
std::string quoted_name(const std::string& message) {
  const std::size_t begin = message.find(": '");
  const std::size_t end = begin == std::string::npos ? begin : message.find('\'', begin + 3);
  return end == std::string::npos ? std::string() : message.substr(begin + 3, end - begin - 3);
}

Error not_supported(const Error& refusal) {
  const std::string key = quoted_name(refusal.message());
  return {refusal.code(),
          "execution not supported: " +
              (key.empty() ? refusal.message() : key + " (" + refusal.message() + ")")};
}

}  // namespace

Result<std::optional<UnsupportedModel>> measure_unsupported(const JobOptions& options,
                                                            const JobEnvironment& environment,
                                                            const std::stop_token& stop) {
  LIB_TRY(const weightmap::remote::Uri place, weightmap::remote::parse_uri(options.model));
  LIB_TRY_VOID(weightmap::remote::check_allowed(place, options.insecure_http));
  const auto transport = environment.make_transport(options);
  weightmap::remote::FetcherOptions fetching;
  fetching.connections = options.connections;
  weightmap::remote::Fetcher fetcher(*transport, *environment.clock, fetching);
  LIB_TRY(const weightmap::remote::PinnedModel model,
          pin_model(fetcher, place, std::nullopt, environment.variables, stop));
  const auto opened = weightmap::Checkpoint::open(fetcher, model.read_from, stop);
  if (opened || opened.error().code() != ErrorCode::bad_input) {
    return std::optional<UnsupportedModel>();
  }
  LIB_TRY(weightmap::ModelSizes sizes, weightmap::measure_model(fetcher, model.read_from, stop));
  return std::optional<UnsupportedModel>(
      {model.read_from.display(), std::move(sizes), not_supported(opened.error())});
}

}  // namespace librarian::ingest
