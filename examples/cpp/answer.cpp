// What an artifact answers, through ONNX Runtime's C++ API: answer ARTIFACT END TOKEN...
// TOKEN... are the prompt's tokens, END the one that ends a text; the answer's tokens are printed as they come.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

namespace {

constexpr int kLongest = 64;

Ort::Value Integers(std::vector<int64_t>& values) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::vector<int64_t> shape{1, static_cast<int64_t>(values.size())};
  return Ort::Value::CreateTensor<int64_t>(memory, values.data(), values.size(), shape.data(), shape.size());
}

// [1, heads, 0, head size]: the cache of a text that has not begun.
Ort::Value Empty(const Ort::Session& session, size_t input) {
  const auto type = session.GetInputTypeInfo(input);
  const auto info = type.GetTensorTypeAndShapeInfo();
  auto shape = info.GetShape();
  shape[0] = 1;
  shape[2] = 0;
  Ort::AllocatorWithDefaultOptions allocator;
  return Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), info.GetElementType());
}

// The token with the highest of the last position's logits, float32 [1, positions, vocabulary].
int64_t Likeliest(const Ort::Value& logits) {
  const auto shape = logits.GetTensorTypeAndShapeInfo().GetShape();
  const float* last = logits.GetTensorData<float>() + (shape[1] - 1) * shape[2];
  return std::max_element(last, last + shape[2]) - last;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: answer ARTIFACT END TOKEN...\n";
    return 2;
  }
  const std::string directory = arguments[1];
  const int64_t end = std::stoll(arguments[2]);
  std::vector<int64_t> fed;
  for (int index = 3; index < count; ++index) fed.push_back(std::stoll(arguments[index]));

  const Ort::Env environment;
  const std::basic_string<ORTCHAR_T> graph(directory.begin(), directory.end());
  Ort::Session session(environment, (graph + ORT_TSTR("/model.onnx")).c_str(), Ort::SessionOptions());
  const auto inputs = session.GetInputNames();
  const auto outputs = session.GetOutputNames();

  // Past keys and values by the input that takes them; an output's new ones are fed back.
  std::vector<Ort::Value> cache;
  for (size_t input = 0; input < inputs.size(); ++input) {
    cache.push_back(inputs[input].starts_with("past") ? Empty(session, input) : Ort::Value{nullptr});
  }

  std::vector<int64_t> mask;
  for (int said = 0; said < kLongest; ++said) {
    std::vector<int64_t> positions(fed.size());
    std::iota(positions.begin(), positions.end(), static_cast<int64_t>(mask.size()));
    mask.resize(mask.size() + fed.size(), 1);

    std::vector<Ort::Value> values;
    std::vector<const char*> input_names, output_names;
    for (size_t input = 0; input < inputs.size(); ++input) {
      input_names.push_back(inputs[input].c_str());
      if (inputs[input] == "input_ids") values.push_back(Integers(fed));
      else if (inputs[input] == "attention_mask") values.push_back(Integers(mask));
      else if (inputs[input] == "position_ids") values.push_back(Integers(positions));
      else values.push_back(std::move(cache[input]));
    }
    for (const auto& name : outputs) output_names.push_back(name.c_str());
    auto found = session.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(), values.size(),
                             output_names.data(), output_names.size());

    int64_t token = end;
    for (size_t output = 0; output < outputs.size(); ++output) {
      if (outputs[output] == "logits") {
        if (found[output].GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
          std::cerr << "the logits are not float32: bake with --dtype fp32\n";
          return 1;
        }
        token = Likeliest(found[output]);
        continue;
      }
      if (!outputs[output].starts_with("present")) continue;
      const auto past = "past_key_values" + outputs[output].substr(std::string("present").size());
      cache[std::find(inputs.begin(), inputs.end(), past) - inputs.begin()] = std::move(found[output]);
    }
    std::cout << token << std::endl;
    if (token == end) break;
    fed = {token};
  }
}
