#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iterator>
#include <set>
#include <sstream>

#include "base/units.h"
#include "base/version.h"
#include "cli/secrets.h"
#include "cli/toml_config.h"

namespace librarian::cli {
namespace {

constexpr const char* kDescription =
    "Extracts a big model's activations on a small machine: streams the weights layer by layer,\n"
    "runs each layer over the whole dataset, and leaves a Zarr store that trainers can read.";

constexpr const char* kModelHelp =
    "Model directory with config.json and .safetensors files:\n"
    "/path/dir, file:///path/dir, http(s)://host/dir/, s3://bucket/prefix (AWS_* and ~/.aws)\n"
    "or hf://org/name[@revision] (HF_TOKEN, HF_ENDPOINT; pinned to its commit at the start)";

constexpr const char* kCaptureHelp =
    "What to keep, repeatable and comma-separated: NAME[@LAYERS][(KEY=VALUE,...)].\n"
    "NAME: embed, resid_pre, resid_mid, resid_post, attn_out, mlp_out, final.pre_norm,\n"
    "final.post_norm; hf:i, vllm:i (their hidden states); logits.topk; router (experts of each\n"
    "token, their weights); eagle3, dflash:k (what such drafts are trained on).\n"
    "LAYERS: all, 12, -1, [0,8,-1], 0..3, every:8, spread:8. Default: resid_post@all.\n"
    "KEY: positions=all|loss|last|a..b (tokens of each sample), keep_mantissa_bits=3..6,\n"
    "dtype=fp8_e4m3 (lossy); k (of logits.topk)";

constexpr const char* kFooter =
    "Examples:\n"
    "  librarian tokenize --tokenizer ./teacher --input chats.jsonl --out tokens.safetensors\n"
    "  librarian plan    http://127.0.0.1:8000/teacher/ --tokens tokens.safetensors\n"
    "  librarian extract ./teacher --tokens rows.jsonl --out acts --capture resid_post@spread:4\n"
    "  librarian fetch   http://127.0.0.1:8000/teacher/ --weights-cache /ssd/weights\n"
    "  librarian inspect acts --capture blocks.3.resid_post --sample 0\n"
    "  librarian verify  acts\n"
    "Exit codes: 0 done, 2 usage, 3 bad model or input, 4 output busy or of another job,\n"
    "5 does not fit, 6 remote failed or changed, 7 damage found, 130/143 stopped (resumable).";

// Below this, our own limit and a dead server look alike.
constexpr std::uint64_t kBandwidthMin = 64 * kKiB;
// A new connection's kernel buffer takes 64 KiB at once: a quarter of a second of this.
constexpr std::uint64_t kBandwidthPerConnectionMin = 256 * kKiB;

/// Raw text of the options that need more than CLI11's own conversions.
struct RawOptions {
  std::string device = "auto";
  std::string isa = "auto";
  std::string dtype = "checkpoint";
  std::optional<std::string> device_memory;
  std::optional<std::string> host_memory;
  std::string part_tokens = "auto";
  std::string block_tokens = "auto";
  std::string state = "auto";
  std::string save_state_every = "10min";
  std::optional<std::string> disk_limit;
  std::optional<std::string> bandwidth_max;
  std::string hedge_budget = "1%";
  std::string header_file;
  std::string codec = "zstd";
  std::string staging = "auto";
  std::string skeleton = "auto";
  std::optional<std::string> cache_limit;
  std::vector<std::string> captures;
};

template <typename T>
Result<T> named(const std::string& name, Result<T> value) {
  return value ? std::move(value) : Result<T>(value.error().with_context(name));
}

Error usage(const std::string& text) { return Error(ErrorCode::invalid_argument, text); }

Result<std::uint64_t> auto_or_count(const std::string& name, const std::string& text) {
  if (text == "auto") {
    return std::uint64_t{0};
  }
  std::uint64_t value = 0;
  if (text.empty() || text.size() > 18 ||
      text.find_first_not_of("0123456789") != std::string::npos ||
      (value = std::stoull(text)) == 0) {
    return usage(name + " " + text + ": must be auto or a number of tokens, at least 1");
  }
  return value;
}

/// "1%", "0.5%", "0": a share.
Result<double> share(const std::string& name, const std::string& text) {
  const std::string digits = text.ends_with('%') ? text.substr(0, text.size() - 1) : text;
  const bool zero = text == "0";
  if ((!zero && !text.ends_with('%')) || digits.empty() || digits.size() > 6 ||
      digits.find_first_not_of("0123456789.") != std::string::npos || digits.front() == '.' ||
      std::count(digits.begin(), digits.end(), '.') > 1 || std::stod(digits) > 100) {
    return usage(name + " " + text + ": must be a percentage such as 1%, or 0");
  }
  return std::stod(digits) / 100;
}

/// Names of the paths that this machine runs.
std::string isa_choices() {
  std::string choices = "auto";
  for (auto isa = std::rbegin(gpu_exec::kCpuIsas); isa != std::rend(gpu_exec::kCpuIsas); ++isa) {
    if (gpu_exec::cpu_has_isa(*isa)) {
      choices += std::string(", ") + gpu_exec::cpu_isa_name(*isa);
    }
  }
  return choices;
}

/// The GPU that --device names, if it does.
Result<std::optional<gpu_exec::CudaOptions>> cuda_choice(const RawOptions& raw) {
  if (!raw.device.starts_with("cuda")) {
    if (raw.device != "auto" && raw.device != "cpu") {
      return usage("--device " + raw.device + ": must be auto, cpu or cuda:N");
    }
    if (raw.device_memory) {
      return usage("--device-memory: only for --device cuda:N; the CPU's memory is --host-memory");
    }
    return std::optional<gpu_exec::CudaOptions>();
  }
  gpu_exec::CudaOptions cuda;
  const std::string number = raw.device == "cuda" ? ":0" : raw.device.substr(4);
  if (number.size() < 2 || number.size() > 4 || number[0] != ':' ||
      number.find_first_not_of("0123456789", 1) != std::string::npos) {
    return usage("--device " + raw.device + ": must be auto, cpu or cuda:N");
  }
  cuda.index = std::stoi(number.substr(1));
  if (raw.device_memory) {
    LIB_TRY(cuda.memory_bytes, named("--device-memory", parse_bytes(*raw.device_memory)));
  }
  return std::optional(cuda);
}

Result<void> apply_choices(const RawOptions& raw, ingest::JobOptions& job) {
  LIB_TRY(job.cuda, cuda_choice(raw));
  if (job.cuda && raw.isa != "auto") {
    return usage("--isa " + raw.isa + ": is for the CPU; leave it out with --device " + raw.device);
  }
  for (const gpu_exec::CpuIsa isa : gpu_exec::kCpuIsas) {
    if (raw.isa == gpu_exec::cpu_isa_name(isa)) {
      if (!gpu_exec::cpu_has_isa(isa)) {
        return usage("--isa " + raw.isa + ": this processor cannot run it; use one of " +
                     isa_choices());
      }
      job.isa = isa;
    }
  }
  if (!job.isa && raw.isa != "auto") {
    return usage("--isa " + raw.isa + ": must be one of " + isa_choices());
  }
  for (const gpu_exec::DType type :
       {gpu_exec::DType::bf16, gpu_exec::DType::f16, gpu_exec::DType::f32}) {
    if (raw.dtype == gpu_exec::dtype_name(type)) {
      job.dtype = type;
    }
  }
  if (!job.dtype && raw.dtype != "checkpoint") {
    return usage("--dtype " + raw.dtype + ": must be checkpoint, bf16, f16 or f32");
  }
  if (raw.state == "memory" || raw.state == "disk") {
    job.state = raw.state == "disk" ? ingest::StateMode::disk : ingest::StateMode::memory;
  } else if (raw.state != "auto") {
    return usage("--state " + raw.state + ": must be auto, memory or disk");
  }
  if (raw.codec == "none") {
    job.codec = activation_store::Codec::none;
  } else if (raw.codec != "zstd") {
    return usage("--codec " + raw.codec + ": must be zstd or none");
  }
  if (raw.staging == "memory" || raw.staging == "disk") {
    job.staging = raw.staging == "disk" ? ingest::StagingMode::disk : ingest::StagingMode::memory;
  } else if (raw.staging != "auto") {
    return usage("--staging " + raw.staging + ": must be auto, memory or disk");
  }
  job.skeleton = raw.skeleton == "auto";
  if (raw.skeleton != "auto" && raw.skeleton != "no") {
    return usage("--skeleton " + raw.skeleton + ": must be auto or no");
  }
  if (raw.staging == "memory" && !job.weights_cache.empty()) {
    return usage(
        "--weights-cache keeps staged files, and --staging memory stages none: leave one out");
  }
  return {};
}

/// Options that fetch has, too.
Result<void> apply_fetch_numbers(const RawOptions& raw, ingest::JobOptions& job) {
  if (raw.host_memory) {
    LIB_TRY(job.host_memory_bytes, named("--host-memory", parse_bytes(*raw.host_memory)));
  }
  if (raw.cache_limit) {
    if (job.weights_cache.empty()) {
      return usage("--cache-limit needs --weights-cache DIR");
    }
    LIB_TRY(job.cache_limit_bytes, named("--cache-limit", parse_bytes(*raw.cache_limit)));
  }
  if (raw.bandwidth_max) {
    std::string text = *raw.bandwidth_max;
    text = text.ends_with("/s") ? text.substr(0, text.size() - 2) : text;
    LIB_TRY(job.bandwidth_max, named("--max-bandwidth", parse_bytes(text)));
    if (job.bandwidth_max < kBandwidthMin) {
      return usage("--max-bandwidth " + *raw.bandwidth_max + ": must be at least 64KiB");
    }
    const std::uint64_t shares = job.bandwidth_max / kBandwidthPerConnectionMin;
    job.connections = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(shares, 1, std::max(job.connections, 1U)));
  }
  LIB_TRY(job.hedge_budget, share("--hedge-budget", raw.hedge_budget));
  if (!raw.header_file.empty()) {
    LIB_TRY(job.headers, read_header_file(raw.header_file));
  }
  return {};
}

Result<void> apply_numbers(const RawOptions& raw, ingest::JobOptions& job) {
  LIB_TRY_VOID(apply_fetch_numbers(raw, job));
  if (raw.disk_limit) {
    LIB_TRY(job.disk_limit_bytes, named("--disk-limit", parse_bytes(*raw.disk_limit)));
  }
  LIB_TRY(job.save_state_every, named("--save-state-every", parse_duration(raw.save_state_every)));
  LIB_TRY(job.part_tokens, auto_or_count("--part-tokens", raw.part_tokens));
  LIB_TRY(job.block_tokens, auto_or_count("--block-tokens", raw.block_tokens));
  if (!raw.captures.empty()) {
    job.captures = raw.captures;
  }
  return {};
}

const CLI::Validator& not_empty() {
  static const CLI::Validator validator(
      [](const std::string& text) { return text.empty() ? "must not be empty" : std::string(); },
      "");
  return validator;
}

/// Where weights come from, how, and what is kept of them.
void add_fetch_options(CLI::App& app, ingest::JobOptions& job, RawOptions& raw) {
  app.add_option("model,--model", job.model, kModelHelp)->required()->type_name("MODEL");
  app.add_option("--host-memory", raw.host_memory,
                 "Limit of all buffers, e.g. 4GiB. Default: half of RAM or of the cgroup limit")
      ->type_name("SIZE");
  app.add_option("--connections", job.connections,
                 "Range requests at a time, at most; begins with fewer and grows while that helps")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--max-bandwidth", raw.bandwidth_max,
                 "Bytes per second from the network, at most, e.g. 100MB")
      ->type_name("SIZE");
  app.add_option("--hedge-budget", raw.hedge_budget,
                 "Extra bytes for asking twice where an answer is late, of all bytes; 0: never")
      ->capture_default_str();
  app.add_option("--header-file", raw.header_file,
                 "Lines 'Name: value' for the model's http(s) server alone; only you may read it")
      ->type_name("FILE");
  app.add_option("--weights-cache", job.weights_cache,
                 "Keep whole weight files here for the next part, job or process")
      ->check(not_empty())
      ->type_name("DIR");
  app.add_option(
         "--cache-limit", raw.cache_limit,
         "Most that the cache may take; what is used least recently goes. Default: what is\n"
         "free on its disk, less a margin")
      ->type_name("SIZE");
  app.add_flag("--insecure-http", job.insecure_http, "Allow plain http from other machines");
}

void add_job_options(CLI::App& app, ingest::JobOptions& job, RawOptions& raw) {
  const auto counts = CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40U);
  add_fetch_options(app, job, raw);
  app.add_option("--tokens", job.tokens,
                 "Samples: .safetensors {input_ids, offsets, loss_mask}, .jsonl or .npy")
      ->required()
      ->type_name("FILE");
  app.add_option("--capture", raw.captures, kCaptureHelp)
      ->type_name("CAPTURE")
      ->expected(1)
      ->take_all();
  app.add_option("--dtype", raw.dtype,
                 "Type of arithmetic, state and store: checkpoint, bf16, f16, f32")
      ->capture_default_str();
  app.add_option("--device", raw.device, "auto, cpu or cuda:N; auto is the CPU")
      ->capture_default_str();
  app.add_option("--isa", raw.isa, "CPU path: " + isa_choices() + " (same bits per path)")
      ->capture_default_str();
  app.add_option("--device-memory", raw.device_memory,
                 "With cuda:N: most of its memory to use, context included, e.g. 15GiB. Default: "
                 "what is free")
      ->type_name("SIZE");
  app.add_option("--part-tokens", raw.part_tokens,
                 "Tokens of a part, the unit of completion; fixed when the job begins")
      ->capture_default_str();
  app.add_option("--block-tokens", raw.block_tokens, "Rows of one kernel call")
      ->capture_default_str();
  app.add_option("--state", raw.state, "Where the residual stream waits: auto, memory, disk")
      ->capture_default_str();
  app.add_option("--scratch", job.scratch,
                 "Directory for state and staged weights. Default: OUT/scratch")
      ->type_name("DIR");
  app.add_option("--save-state-every", raw.save_state_every,
                 "Save a memory state at layer borders at least this often; 0: at each")
      ->capture_default_str();
  app.add_option("--disk-limit", raw.disk_limit,
                 "Refuse a job that needs more disk; also limits staging")
      ->type_name("SIZE");
  app.add_option("--max-length", job.max_length, "Cut longer samples to N tokens")->check(counts);
  app.add_option("--num-samples", job.num_samples, "Only the first N samples")->check(counts);
  app.add_option("--codec", raw.codec, "zstd (lossless) or none")->capture_default_str();
  app.add_option("--chunk-tokens", job.chunk_tokens, "Rows of a chunk. Default: about 1 MiB")
      ->check(counts);
  app.add_option("--shard-tokens", job.shard_tokens, "Rows of a file. Default: 512 chunks")
      ->check(counts);
  app.add_option("--threads", job.threads, "Default: the CPUs this process may use")
      ->check(CLI::Range(1, 1024));
  app.add_option(
         "--staging", raw.staging,
         "Where remote weights wait: memory (ranges), disk (whole files, hashed, kept over a\n"
         "crash), auto (disk where its limit holds two layers' files and whole files add\n"
         "at most 2 %)")
      ->capture_default_str();
  app.add_option(
         "--skeleton", raw.skeleton,
         "Write OUT/model/: config, tokenizer, embedding, final norm and head, for trainers "
         "(auto),\nor leave it out (no)")
      ->capture_default_str();
  app.add_flag("--allow-nonfinite", job.allow_nonfinite, "Keep NaN and infinity");
}

void add_common_options(CLI::App& app, Options& options) {
  app.add_flag("--json", options.json, "Results and events as JSON lines on standard output");
}

/// The arguments, with those of --config added for options that the command line does not give.
Result<std::vector<std::string>> arguments_with_config(const CLI::App& app, int argc,
                                                       const char* const* argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const CLI::App* command = nullptr;
  std::string path;
  std::set<std::string> given;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (command == nullptr && !argument.starts_with('-')) {
      const auto found = app.get_subcommands(
          [&](const CLI::App* candidate) { return candidate->get_name() == argument; });
      command = found.empty() ? nullptr : found.front();
      if (command == nullptr) {
        return usage(
            "'" + argument +
            "' is not a command (plan, extract, fetch, inspect, verify, diff, tokenize, export). "
            "Try 'librarian --help'");
      }
    }
    given.insert(argument.substr(0, argument.find('=')));
    if (argument == "--config" && i + 1 < arguments.size()) {
      path = arguments[i + 1];
    } else if (argument.starts_with("--config=")) {
      path = argument.substr(std::string("--config=").size());
    }
  }
  if (path.empty() || command == nullptr) {
    return arguments;
  }
  LIB_TRY(const std::vector<ConfigSetting> settings, read_toml_config(path));
  for (const ConfigSetting& setting : settings) {
    const std::string name = "--" + setting.name;
    const CLI::Option* option = command->get_option_no_throw(name);
    if (option == nullptr || setting.name == "config") {
      return usage("--config " + path + ": '" + setting.name + "' is not an option of '" +
                   command->get_name() + "'");
    }
    if (given.contains(name)) {
      continue;
    }
    for (const std::string& value : setting.values) {
      if (option->get_items_expected_max() > 0) {
        arguments.push_back(name + "=" + value);
      } else if (value == "true") {
        arguments.push_back(name);
      } else if (value != "false") {
        return usage("--config " + path + ": '" + setting.name + "' must be true or false");
      }
    }
  }
  return arguments;
}

}  // namespace

Result<ParsedCommandLine> parse_command_line(int argc, const char* const* argv) {
  CLI::App app(kDescription, "librarian");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("librarian ") + kVersion);
  app.require_subcommand(1);
  app.get_formatter()->column_width(32);

  Options options;
  RawOptions raw;
  std::string config_file;
  CLI::App* plan = app.add_subcommand("plan", "What a job would take; writes nothing");
  CLI::App* pilot = app.add_subcommand(
      "pilot", "Look before the long run: perplexity and loss mask of a few samples");
  CLI::App* extract = app.add_subcommand("extract", "Run a job, or resume it: the same command");
  CLI::App* fetch = app.add_subcommand("fetch", "Fetch and verify a model's weights; no job runs");
  CLI::App* inspect = app.add_subcommand("inspect", "Shapes, progress, statistics, values");
  CLI::App* verify = app.add_subcommand("verify", "Check every byte of a store");
  CLI::App* diff = app.add_subcommand("diff", "Compare two stores, sample by sample");
  // main() hands these two over to Python where they are the first argument; here they are for
  // --help.
  CLI::App* tokenize =
      app.add_subcommand("tokenize", "Texts and chats to a token file (Python: nexus_librarian)");
  CLI::App* exporter =
      app.add_subcommand("export", "A store in the formats of trainers (Python: nexus_librarian)");
  for (CLI::App* command : {plan, pilot, extract}) {
    add_job_options(*command, options.job, raw);
    command
        ->add_option("--config", config_file,
                     "Options from a TOML file, under their names without dashes")
        ->type_name("FILE.toml");
  }
  add_fetch_options(*fetch, options.job, raw);
  fetch->add_flag("--verify-only", options.verify_only,
                  "Read only heads: list what the source offers to verify against");
  pilot->add_option("--samples", options.job.num_samples, "The first N samples. Default: 64")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40U))
      ->type_name("N");
  plan->add_option("--out", options.job.out, "Store directory: take what its job fixed")
      ->check(not_empty())
      ->type_name("DIR");
  extract->add_option("--out", options.job.out, "Store directory")
      ->required()
      ->check(not_empty())
      ->type_name("DIR");
  inspect->add_option("directory", options.directories, "Store directory")
      ->required()
      ->expected(1)
      ->type_name("DIR");
  inspect->add_option("--capture", options.capture, "Capture to look at")->type_name("NAME");
  inspect->add_option("--sample", options.sample, "Sample number, from 0")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 40U))
      ->type_name("N");
  inspect->add_option("--raw", options.raw_file, "Write the sample's values as .npy")
      ->type_name("FILE.npy");
  verify->add_option("directory", options.directories, "Store directory")
      ->required()
      ->expected(1)
      ->type_name("DIR");
  diff->add_option("directories", options.directories, "Two store directories")
      ->required()
      ->expected(2)
      ->type_name("DIR DIR");
  for (CLI::App* command : {plan, pilot, extract, fetch, inspect, verify, diff}) {
    add_common_options(*command, options);
  }

  LIB_TRY(std::vector<std::string> arguments, arguments_with_config(app, argc, argv));
  try {
    // CLI11 takes a vector from its end.
    std::reverse(arguments.begin(), arguments.end());
    app.parse(std::move(arguments));
  } catch (const CLI::Success& success) {
    // --help and --version arrive as exceptions that carry what to print.
    std::ostringstream out;
    app.exit(success, out, out);
    return ParsedCommandLine{std::nullopt, out.str()};
  } catch (const CLI::ParseError& error) {
    std::string text = error.what();
    return usage(text + (text.ends_with('.') ? "" : ".") + " Try 'librarian --help'");
  }
  if (tokenize->parsed() || exporter->parsed()) {
    return usage("tokenize and export must be the first argument. Try 'librarian tokenize --help'");
  }
  options.command = plan->parsed()      ? Command::plan
                    : pilot->parsed()   ? Command::pilot
                    : extract->parsed() ? Command::extract
                    : fetch->parsed()   ? Command::fetch
                    : inspect->parsed() ? Command::inspect
                    : verify->parsed()  ? Command::verify
                                        : Command::diff;
  if (options.command == Command::plan || options.command == Command::pilot ||
      options.command == Command::extract) {
    LIB_TRY_VOID(apply_choices(raw, options.job));
    LIB_TRY_VOID(apply_numbers(raw, options.job));
  }
  if (options.command == Command::fetch) {
    LIB_TRY_VOID(apply_fetch_numbers(raw, options.job));
  }
  if (options.sample && options.capture.empty()) {
    return usage("--sample needs --capture NAME");
  }
  if (!options.raw_file.empty() && !options.sample) {
    return usage("--raw needs --capture NAME and --sample N");
  }
  return ParsedCommandLine{std::move(options), ""};
}

}  // namespace librarian::cli
