import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.http.StreamResponse;
import com.openai.errors.BadRequestException;
import com.openai.errors.UnauthorizedException;
import com.openai.models.chat.completions.ChatCompletion;
import com.openai.models.chat.completions.ChatCompletionChunk;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import dev.langchain4j.data.message.AiMessage;
import dev.langchain4j.data.message.ChatMessage;
import dev.langchain4j.data.message.SystemMessage;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.exception.AuthenticationException;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiChatModel;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import dev.langchain4j.model.openai.OpenAiTokenUsage;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;

/** openai-java and langchain4j against kvmerge serve: BASE_URL and KEY from the command line. */
final class Clients {
    private static final String QUESTION = "What is the capital of France?";

    private Clients() {}

    public static void main(String[] args) throws Exception {
        openAi(args[0], args[1]);
        System.out.println("ok: openai-java");
        langChain(args[0], args[1]);
        System.out.println("ok: langchain4j");
        System.exit(0); // okhttp's threads linger
    }

    private static void check(boolean right, Object what) {
        if (!right) {
            throw new AssertionError(what);
        }
    }

    private static OpenAIClient client(String url, String key) {
        return OpenAIOkHttpClient.builder()
                .baseUrl(url)
                .apiKey(key)
                .maxRetries(0)
                .build();
    }

    private static void openAi(String url, String key) {
        OpenAIClient client = client(url, key);
        String model = client.models().list().data().getFirst().id();
        ChatCompletionCreateParams.Builder ask = ChatCompletionCreateParams.builder()
                .model(model)
                .addSystemMessage("You answer briefly.")
                .addUserMessage(QUESTION)
                .temperature(0)
                .maxCompletionTokens(16);
        ChatCompletion whole = client.chat().completions().create(ask.build());
        String answer = whole.choices().getFirst().message().content().orElseThrow();
        check(!answer.isBlank(), whole);
        check(whole.usage().orElseThrow().totalTokens() > 0, whole);
        try (StreamResponse<ChatCompletionChunk> stream =
                client.chat().completions().createStreaming(ask.build())) {
            String text = stream.stream()
                    .flatMap(chunk -> chunk.choices().stream())
                    .map(choice -> choice.delta().content().orElse(""))
                    .collect(Collectors.joining());
            check(text.equals(answer), text + " is not " + answer);
        }
        try {
            client.chat().completions().create(ask.n(3).build());
            check(false, "n = 3 was taken");
        } catch (BadRequestException e) {
            check(e.getMessage().contains("'n'"), e);
        }
        try {
            client(url, "wrong").models().list();
            check(false, "a wrong key was taken");
        } catch (UnauthorizedException e) {
            check(e.statusCode() == 401, e);
        }
        client.close();
    }

    private static void langChain(String url, String key) throws Exception {
        OpenAiChatModel model = OpenAiChatModel.builder()
                .baseUrl(url)
                .apiKey(key)
                .modelName("any")
                .temperature(0.0)
                .maxTokens(12)
                .maxRetries(0)
                .build();
        List<ChatMessage> talk = new ArrayList<>(List.of(SystemMessage.from("You answer briefly.")));
        int read = 0;
        for (String question : List.of(QUESTION, "And of Spain?")) {
            talk.add(UserMessage.from(question));
            ChatResponse response = model.chat(talk);
            AiMessage answer = response.aiMessage();
            check(!answer.text().isBlank(), response);
            OpenAiTokenUsage usage = (OpenAiTokenUsage) response.tokenUsage();
            check(usage.inputTokensDetails().cachedTokens() >= read - 1, usage);
            read = usage.totalTokenCount();
            talk.add(answer);
        }
        OpenAiStreamingChatModel streaming = OpenAiStreamingChatModel.builder()
                .baseUrl(url)
                .apiKey(key)
                .modelName("any")
                .temperature(0.0)
                .maxTokens(12)
                .build();
        CompletableFuture<ChatResponse> whole = new CompletableFuture<>();
        StringBuilder pieces = new StringBuilder();
        streaming.chat(List.of(UserMessage.from(QUESTION)), new StreamingChatResponseHandler() {
            @Override
            public void onPartialResponse(String piece) {
                pieces.append(piece);
            }

            @Override
            public void onCompleteResponse(ChatResponse response) {
                whole.complete(response);
            }

            @Override
            public void onError(Throwable e) {
                whole.completeExceptionally(e);
            }
        });
        check(whole.get().aiMessage().text().contentEquals(pieces), pieces);
        try {
            OpenAiChatModel.builder()
                    .baseUrl(url)
                    .apiKey("wrong")
                    .modelName("any")
                    .maxRetries(0)
                    .build()
                    .chat("x");
            check(false, "a wrong key was taken");
        } catch (AuthenticationException e) {
            check(e.getMessage().contains("API key"), e);
        }
    }
}
