package dev.kvmerge.server;

import dev.kvmerge.engine.ChatMessage;
import java.util.List;

/**
 * What is to be read before an answer.
 *
 * @param messages of a conversation; null where the caller gave a text or tokens
 * @param text as the template or the caller wrote it; null where the caller gave tokens
 * @param tokens all of it
 * @param cached whether what a slot has read already may be taken; else all is read
 */
record Prompt(List<ChatMessage> messages, String text, int[] tokens, boolean cached) {}
