// Goal: a model directory is opened only if config, index and headers say the same thing.
// Method: a small model served from memory, with one thing changed at a time.
#include "weightmap/checkpoint.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/digest.h"
#include "tests/weightmap/checkpoint_files.h"

namespace librarian::weightmap {
namespace {

using testing::CheckpointFiles;
using testing::FileTensor;
using testing::OpenedCheckpoint;

constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";
constexpr const char* kQ = "model.layers.2.self_attn.q_proj.weight";

void put_all_into_one_file(CheckpointFiles& model) {
  std::vector<FileTensor> all;
  for (auto& [name, tensors] : model.files) {
    all.insert(all.end(), tensors.begin(), tensors.end());
  }
  model.files = {{"model.safetensors", all}};
  model.index.clear();
}

TEST(Checkpoint, GivesEveryByteOfTheModelItsRole) {
  const CheckpointFiles model = CheckpointFiles::tiny();
  OpenedCheckpoint opened(model.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  const Checkpoint& checkpoint = *opened.checkpoint;
  EXPECT_EQ(checkpoint.layer_count(), 6);
  ASSERT_EQ(checkpoint.files().size(), 2U);
  EXPECT_EQ(checkpoint.dtype(), gpu_exec::DType::bf16);
  EXPECT_EQ(checkpoint.config_sha256(), sha256_hex(opened.contents.at("config.json")));
  EXPECT_EQ(checkpoint.index_sha256(),
            sha256_hex(opened.contents.at("model.safetensors.index.json")));
  std::uint64_t bytes = 0;
  for (std::int32_t layer = kEmbeddingLayer; layer <= 6; ++layer) {
    const LayerPlan& plan = checkpoint.layer(layer);
    EXPECT_EQ(plan.layer, layer);
    EXPECT_EQ(plan.tensors.size(), layer < 0 || layer == 6 ? 1U : 9U);
    std::pair<std::uint32_t, std::uint64_t> at{0, 0};
    for (const WeightTensor& tensor : plan.tensors) {
      // In file order, and where the tensor's bytes really are.
      EXPECT_GE(std::pair(tensor.file, tensor.bytes.begin), at);
      at = {tensor.file, tensor.bytes.end};
      const std::string& file = opened.contents.at(checkpoint.files()[tensor.file].name);
      CheckpointFiles copy = model;
      EXPECT_EQ(file.substr(tensor.bytes.begin, tensor.bytes.size()),
                copy.tensor(tensor.name).bytes);
      bytes += tensor.bytes.size();
    }
  }
  EXPECT_EQ(checkpoint.weight_bytes(), bytes);
}

TEST(Checkpoint, CanBeReadByStage) {
  OpenedCheckpoint opened(CheckpointFiles::tiny().contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  opened.checkpoint->order_by_stage();
  for (std::int32_t layer = 0; layer < 6; ++layer) {
    std::tuple<std::uint32_t, std::uint32_t, std::uint64_t> at{0, 0, 0};
    for (const WeightTensor& tensor : opened.checkpoint->layer(layer).tensors) {
      EXPECT_GE(std::tuple(gpu_exec::stage_order(tensor.key), tensor.file, tensor.bytes.begin), at);
      at = {gpu_exec::stage_order(tensor.key), tensor.file, tensor.bytes.end};
    }
    EXPECT_EQ(std::get<0>(at), 2U);
  }
}

std::vector<std::string> skeleton_names(const OpenedCheckpoint& opened) {
  std::vector<std::string> names;
  for (const StoredTensor& tensor : opened.checkpoint->skeleton()) {
    names.push_back(tensor.name);
  }
  return names;
}

// Catches: a head that is dropped because config.json says nothing of ties, or kept twice because
// the file has it though they are tied.
TEST(Checkpoint, KnowsWhatLiesOutsideTheLayers) {
  CheckpointFiles model = CheckpointFiles::tiny();
  const OpenedCheckpoint opened(model.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  EXPECT_EQ(skeleton_names(opened),
            (std::vector<std::string>{"lm_head.weight", "model.embed_tokens.weight",
                                      "model.norm.weight"}));
  for (const StoredTensor& tensor : opened.checkpoint->skeleton()) {
    const std::string& file = opened.contents.at(opened.checkpoint->files()[tensor.file].name);
    EXPECT_EQ(tensor.dtype, "BF16");
    EXPECT_EQ(tensor.shape, model.tensor(tensor.name).shape);
    EXPECT_EQ(file.substr(tensor.bytes.begin, tensor.bytes.size()),
              model.tensor(tensor.name).bytes);
  }
  model.config["tie_word_embeddings"] = true;
  const OpenedCheckpoint tied(model.contents());
  ASSERT_TRUE(tied.checkpoint) << tied.checkpoint.error().message();
  EXPECT_EQ(skeleton_names(tied),
            (std::vector<std::string>{"model.embed_tokens.weight", "model.norm.weight"}));
}

// Catches: a scale of a head that is refused, or lost, because no layer has such a name.
TEST(Checkpoint, KeepsAQuantisedHeadWithItsScales) {
  CheckpointFiles model = CheckpointFiles::tiny();
  model.config["quantization_config"] = {{"quant_method", "fp8"},
                                         {"weight_block_size", {128, 128}},
                                         {"modules_to_not_convert", Json::array()}};
  FileTensor& head = model.tensor("lm_head.weight");
  head.dtype = "F8_E4M3";
  head.bytes.resize(head.bytes.size() / 2);
  const std::string file = model.index.at("lm_head.weight");
  model.files[file].push_back({"lm_head.weight_scale_inv", "F32", {1, 1}, std::string(4, '\1')});
  model.index["lm_head.weight_scale_inv"] = file;
  const OpenedCheckpoint opened(model.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  EXPECT_EQ(skeleton_names(opened),
            (std::vector<std::string>{"lm_head.weight", "lm_head.weight_scale_inv",
                                      "model.embed_tokens.weight", "model.norm.weight"}));
  EXPECT_EQ(opened.checkpoint->skeleton().front().dtype, "F8_E4M3");
}

TEST(Checkpoint, OpensTheOtherFormsThatPeoplePublish) {
  const std::pair<const char*, std::function<void(CheckpointFiles&)>> forms[] = {
      {"one file without an index", put_all_into_one_file},
      {"one file with an index",
       [](CheckpointFiles& model) {
         const auto index = model.index;
         put_all_into_one_file(model);
         for (const auto& [tensor, file] : index) {
           model.index[tensor] = "model.safetensors";
         }
       }},
      {"names without 'model.'",
       [](CheckpointFiles& model) {
         put_all_into_one_file(model);
         for (FileTensor& tensor : model.files["model.safetensors"]) {
           if (tensor.name.starts_with("model.")) {
             tensor.name = tensor.name.substr(6);
           }
         }
       }},
      {"no lm_head",
       [](CheckpointFiles& model) {
         model.take("lm_head.weight");
         model.index.erase("lm_head.weight");
       }},
      {"rotary buffers",
       [](CheckpointFiles& model) {
         model.files[kFirst].push_back(
             {"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {4}, std::string(16, 'x')});
         model.index["model.layers.0.self_attn.rotary_emb.inv_freq"] = kFirst;
       }},
      {"a norm in f32",
       [](CheckpointFiles& model) {
         FileTensor& norm = model.tensor("model.norm.weight");
         norm.dtype = "F32";
         norm.bytes.resize(64);
       }},
  };
  for (const auto& [what, change] : forms) {
    CheckpointFiles model = CheckpointFiles::tiny();
    change(model);
    OpenedCheckpoint opened(model.contents());
    ASSERT_TRUE(opened.checkpoint) << what << ": " << opened.checkpoint.error().message();
    EXPECT_EQ(opened.checkpoint->layer_count(), 6) << what;
  }
}

struct BadCase {
  const char* what;
  std::function<void(CheckpointFiles&)> change;
  const char* named;  ///< What the error must name.
};

// Catches: each row is a way in which a checkpoint that is not the model would run as it.
TEST(Checkpoint, IsRefusedByTheNameOfWhatIsWrong) {
  const BadCase cases[] = {
      {"a tensor is missing from file and index",
       [](CheckpointFiles& model) {
         model.take(kQ);
         model.index.erase(kQ);
       },
       kQ},
      {"the index names a tensor that is not there", [](CheckpointFiles& model) { model.take(kQ); },
       kQ},
      {"the index does not name a tensor that is there",
       [](CheckpointFiles& model) { model.index.erase(kQ); }, kQ},
      {"a tensor lies in the other file",
       [](CheckpointFiles& model) { model.files[kSecond].push_back(model.take(kQ)); }, kQ},
      {"a tensor lies in both files",
       [](CheckpointFiles& model) { model.files[kSecond].push_back(model.tensor(kQ)); }, kQ},
      {"the index names a file that is not there",
       [](CheckpointFiles& model) { model.index[kQ] = "missing.safetensors"; },
       "missing.safetensors"},
      {"a tensor that no layer has",
       [](CheckpointFiles& model) {
         FileTensor extra = model.tensor(kQ);
         extra.name = "model.layers.2.self_attn.q_proj.bias";
         extra.shape = {16};
         extra.bytes.resize(32);
         model.files[kFirst].push_back(extra);
         model.index[extra.name] = kFirst;
       },
       "model.layers.2.self_attn.q_proj.bias"},
      {"a tensor of unknown name",
       [](CheckpointFiles& model) {
         FileTensor extra = model.tensor(kQ);
         extra.name = "model.adapter.weight";
         model.files[kFirst].push_back(extra);
         model.index[extra.name] = kFirst;
       },
       "model.adapter.weight"},
      {"a transposed tensor",
       [](CheckpointFiles& model) {
         std::swap(model.tensor("model.layers.1.mlp.up_proj.weight").shape[0],
                   model.tensor("model.layers.1.mlp.up_proj.weight").shape[1]);
       },
       "model.layers.1.mlp.up_proj.weight"},
      {"a flattened tensor", [](CheckpointFiles& model) { model.tensor(kQ).shape = {16 * 16}; },
       kQ},
      {"a tensor with an extra dimension",
       [](CheckpointFiles& model) {
         model.tensor(kQ).shape = {1, 16, 16};
       },
       kQ},
      {"another vocabulary", [](CheckpointFiles& model) { model.config["vocab_size"] = 31; },
       "model.embed_tokens.weight"},
      {"another width", [](CheckpointFiles& model) { model.config["intermediate_size"] = 48; },
       "mlp."},
      {"more layers than there are",
       [](CheckpointFiles& model) { model.config["num_hidden_layers"] = 7; }, "model.layers.6."},
      {"fewer layers than there are",
       [](CheckpointFiles& model) { model.config["num_hidden_layers"] = 5; }, "model.layers.5."},
      {"quantised weights",
       [](CheckpointFiles& model) {
         model.tensor(kQ).dtype = "F8_E4M3";
         model.tensor(kQ).bytes.resize(256);
       },
       kQ},
      {"integer weights", [](CheckpointFiles& model) { model.tensor(kQ).dtype = "I16"; }, kQ},
      {"both prefixes",
       [](CheckpointFiles& model) {
         FileTensor extra = model.tensor("model.embed_tokens.weight");
         extra.name = "embed_tokens.weight";
         model.files[kSecond].push_back(extra);
         model.index[extra.name] = kSecond;
       },
       "'embed_tokens.weight'"},
      {"another family", [](CheckpointFiles& model) { model.config["model_type"] = "qwen3"; },
       "model"},
  };
  for (const BadCase& row : cases) {
    CheckpointFiles model = CheckpointFiles::tiny();
    row.change(model);
    OpenedCheckpoint opened(model.contents());
    EXPECT_FALSE(opened.checkpoint) << row.what;
    if (!opened.checkpoint) {
      EXPECT_EQ(opened.checkpoint.error().code(), ErrorCode::bad_input) << row.what;
      EXPECT_NE(opened.checkpoint.error().message().find(row.named), std::string::npos)
          << row.what << ": " << opened.checkpoint.error().message();
    }
  }
}

TEST(Checkpoint, ThatIsIncompleteOrCutIsRefused) {
  const auto whole = CheckpointFiles::tiny().contents();
  for (const auto& [name, text] : whole) {
    auto missing = whole;
    missing.erase(name);
    OpenedCheckpoint without(missing);
    ASSERT_FALSE(without.checkpoint) << "without " << name;
    EXPECT_EQ(without.checkpoint.error().code(), ErrorCode::bad_input)
        << without.checkpoint.error().message();
    auto cut = whole;
    cut[name].pop_back();
    OpenedCheckpoint shorter(cut);
    ASSERT_FALSE(shorter.checkpoint) << "cut " << name;
    EXPECT_NE(shorter.checkpoint.error().message().find(name), std::string::npos)
        << shorter.checkpoint.error().message();
    if (name.ends_with(".safetensors")) {
      auto longer = whole;
      longer[name] += 'x';
      EXPECT_FALSE(OpenedCheckpoint(longer).checkpoint) << "one byte more in " << name;
    }
  }
  EXPECT_FALSE(OpenedCheckpoint({}).checkpoint);
}

// Goal: a header longer than the first request brings is fetched to its end, whatever its length.
TEST(Checkpoint, ReadsHeadersLongerThanItsFirstRequest) {
  for (const std::size_t names : {300U, 1400U, 2000U}) {
    CheckpointFiles model = CheckpointFiles::tiny();
    put_all_into_one_file(model);
    for (std::size_t i = 0; i < names; ++i) {
      model.files["model.safetensors"].push_back(
          {"x" + std::to_string(i) + ".rotary_emb.inv_freq", "F32", {1}, "abcd"});
    }
    OpenedCheckpoint opened(model.contents());
    ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  }
}

// Goal: without a type in config.json the type that most bytes have decides.
TEST(Checkpoint, TakesTheCommonestTypeWhereTheConfigIsSilent) {
  CheckpointFiles model = CheckpointFiles::tiny();
  model.config.erase("torch_dtype");
  model.tensor("model.embed_tokens.weight").dtype = "F16";
  FileTensor& norm = model.tensor("model.norm.weight");
  norm.dtype = "F32";
  norm.bytes.resize(64);
  OpenedCheckpoint opened(model.contents());
  ASSERT_TRUE(opened.checkpoint) << opened.checkpoint.error().message();
  EXPECT_EQ(opened.checkpoint->dtype(), gpu_exec::DType::bf16);
  EXPECT_EQ(opened.checkpoint->widest_dtype(), gpu_exec::DType::bf16) << "of matrices";
  FileTensor& matrix = model.tensor(kQ);
  matrix.dtype = "F32";
  matrix.bytes.resize(2 * matrix.bytes.size());
  EXPECT_EQ(OpenedCheckpoint(model.contents()).checkpoint->widest_dtype(), gpu_exec::DType::f32);
}

}  // namespace
}  // namespace librarian::weightmap
