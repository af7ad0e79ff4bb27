package dev.kvmerge.server;

/**
 * What is to be read before an answer.
 *
 * @param text as the template or the caller wrote it; null where the caller gave tokens
 * @param tokens all of it
 * @param pinned how many of the first are the system prompt's, which is never dropped or merged; 0 for none
 * @param cached whether what a slot has read already may be taken; else all is read
 */
record Prompt(String text, int[] tokens, int pinned, boolean cached) {}
